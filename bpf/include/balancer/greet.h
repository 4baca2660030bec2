/* Shaking hands with a client, and recognising who has been answered, as balancer/core/handshake.py does. */
#pragma once

#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "balancer/answer.h"
#include "balancer/arrival.h"
#include "clock.h"
#include "counters.h"
#include "syncookie.h"
#include "tcp_options.h"

/* Bytes that the timestamps option and its padding take from every segment. */
#define STAMPS_SIZE 12
/* Client ISNs that a segment may prove. */
#define CANDIDATES 3

static __always_inline __u32 cookie_period(const struct arrival *a)
{
    return a->now / COOKIE_PERIOD;
}

/* Keeps what the SYN said; where there is no room, what only the memory could carry is not offered. */
static __always_inline void remember_hello(const struct arrival *a, struct said *said)
{
    struct hello hello = {
        .client_isn = a->seq,
        .since = a->now,
        .mss = said->mss,
        .window_scale = said->window_scale,
        .options = said->options,
    };

    if (bpf_map_update_elem(&half_open, &a->id, &hello, BPF_ANY) && !(said->options & OPTION_TIMESTAMPS)) {
        said->window_scale = NO_SCALE;
        said->options = 0;
    }
}

/* What the SYN-ACK offers to who said this. */
static __always_inline void make_offer(const struct arrival *a, struct said *said)
{
    said->mss = a->service.max_payload;
    if (said->options & OPTION_TIMESTAMPS) {
        said->mss += STAMPS_SIZE;
        said->echo = said->value;
        said->value = cookie_stamp(now_milliseconds(), said->window_scale, said->options);
    }
    if (said->window_scale != NO_SCALE)
        said->window_scale = a->service.promised_scale;
}

/* The SYN-ACK. Data in the SYN and what else its options ask are ignored. A verdict. */
__attribute__((noinline)) int answer_syn(struct __sk_buff *skb)
{
    struct arrival *a = arrival_here();

    if (!a)
        return TC_ACT_SHOT;

    struct flow_key key = key_of(a);
    struct said *said = &a->said;
    struct answer syn_ack = {
        .ack = a->seq + 1,
        .window = preamble_window(&a->service),
        .flags = FLAG_SYN | FLAG_ACK,
    };

    if (!tcp_checksum_holds(skb, &a->frame)) {
        count(COUNT_DROPPED_BAD_CHECKSUM);
        return TC_ACT_SHOT;
    }
    options_syn(&a->frame, said);
    if (said->malformed)
        *said = (struct said){.window_scale = NO_SCALE};
    syn_ack.seq = cookie_make(&key, a->seq, said->mss ? said->mss : DEFAULT_MSS, cookie_period(a));
    remember_hello(a, said);
    make_offer(a, said);
    syn_ack.options_size = options_emit_syn(&a->made, said);
    return send_answer(skb, &syn_ack);
}

/* What was negotiated with the client of this ISN, whose segment proves it. */
static __always_inline void negotiated(struct arrival *a, const struct hello *hello, struct handshake *h,
                                       int mss)
{
    __u32 value = 0, echo = 0;

    h->mss = mss;
    h->window_scale = NO_SCALE;
    h->options = 0;
    if (hello && hello->client_isn == h->client_isn) {
        h->mss = hello->mss ? hello->mss : DEFAULT_MSS;
        h->window_scale = hello->window_scale;
        h->options = hello->options;
    } else if (options_stamps(&a->frame, &value, &echo)) {
        h->window_scale = cookie_stamped_scale(echo);
        h->options = cookie_stamped_options(echo) | OPTION_TIMESTAMPS;
    }
}

/* Whether the segment proves a handshake, which then stands in *h. Its sequence number is the first after the
 * client's ISN, or that itself (a keepalive probe), or, where the SYN is remembered, anything behind. */
__attribute__((noinline)) int recognise(struct handshake *h)
{
    struct arrival *a = arrival_here();

    if (!a || !h)
        return 0;

    struct flow_key key = key_of(a);
    struct hello *hello = hello_of(a);
    __u32 period = cookie_period(a);

    h->isn = a->ack - 1;
    h->since = a->now;
    for (int at = 0; at < CANDIDATES; at++) {
        int mss;

        if (at == 2 && !hello)
            break;
        h->client_isn = at == 0 ? a->seq - 1 : at == 1 ? a->seq : hello->client_isn;
        mss = cookie_check(&key, h->client_isn, h->isn, period);
        if (mss >= 0) {
            negotiated(a, hello, h, mss);
            return 1;
        }
    }
    return 0;
}

/* Where it is known already, its life is not prolonged. */
static __always_inline void remember(const struct arrival *a)
{
    struct handshake *known = verified_of(a);
    struct handshake handshake = a->handshake;

    handshake.since = known ? known->since : a->now;
    if (bpf_map_update_elem(&verified, &a->id, &handshake, BPF_ANY))
        count(COUNT_VERIFIED_TABLE_FULL);
    else
        forget_hello(a);
}
