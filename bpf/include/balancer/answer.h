/* Segments of our own back to where one came from, in the packet that it came in.
 *
 * The answer's checksum is right whatever that of the segment was: its payload counts as what would make it
 * right. So it stays one that the kernel has still to compute, if it was. */
#pragma once

#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/pkt_cls.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "balancer/arrival.h"
#include "balancer/egress.h"
#include "counters.h"
#include "frame.h"
#include "limit.h"
#include "tcp_options.h"

/* An answer's numbers in host byte order; its options stand in a->made. */
struct answer {
    __u32 seq;
    __u32 ack;
    __u32 window;
    __u32 options_size;
    __u8 flags;
    __u8 zero[3];
};

/* Sends it without payload. A verdict. */
__attribute__((noinline)) int send_answer(struct __sk_buff *skb, struct answer *answer)
{
    struct arrival *a = arrival_here();

    if (!a || !answer)
        return TC_ACT_SHOT;

    struct frame *was = &a->frame, *is = &a->made;

    is->ip = was->ip;
    is->ip.saddr = was->ip.daddr;
    is->ip.daddr = was->ip.saddr;
    is->ip.tos = 0;
    is->tcp = (struct tcphdr){
        .source = was->tcp.dest,
        .dest = was->tcp.source,
        .seq = bpf_htonl(answer->seq),
        .ack_seq = bpf_htonl(answer->ack),
        .window = bpf_htons(answer->window),
    };
    frame_set_flags(is, answer->flags);
    frame_set_sizes(is, TCP_SIZE + answer->options_size, 0);
    ip_fresh(&is->ip);
    if (frame_resize(skb, IP_SIZE + is->tcp_size) || frame_commit(skb, was, is, headers_sum(was))) {
        count(COUNT_DROPPED_UNWRITABLE);
        return TC_ACT_SHOT;
    }
    return leave_for_client(skb, &is->ip);
}

/* The RST for a segment without a connection (RFC 9293 section 3.10.7.1); none in answer to a RST. A
 * verdict. */
__attribute__((noinline)) int send_reset(struct __sk_buff *skb)
{
    struct arrival *a = arrival_here();
    struct answer reset = {.flags = FLAG_RST};

    if (!a || a->flags & FLAG_RST)
        return TC_ACT_SHOT;
    if (!limit_take_at(LIMIT_RESETS, resets_per_second)) {
        count(COUNT_RESETS_SUPPRESSED);
        return TC_ACT_SHOT;
    }
    reset.seq = a->ack;
    if (!(a->flags & FLAG_ACK))
        reset = (struct answer){
            .ack = a->seq + a->frame.payload + !!(a->flags & FLAG_SYN) + !!(a->flags & FLAG_FIN),
            .flags = FLAG_RST | FLAG_ACK,
        };
    count(COUNT_RESETS_SENT);
    return send_answer(skb, &reset);
}

/* The preamble window as a header field: scaled, once both sides have agreed on a scale. */
static __always_inline __u32 window_field(const struct arrival *a)
{
    __u32 scale = a->handshake.window_scale == NO_SCALE ? 0 : a->service.promised_scale;

    return preamble_window(&a->service) >> (scale & 15);
}

/* The ACK that a keepalive probe wants; it acknowledges no byte. Its TSval stays what the client last echoed,
 * since a node's continues it. A verdict. */
__attribute__((noinline)) int acknowledge_nothing(struct __sk_buff *skb)
{
    struct arrival *a = arrival_here();

    if (!a)
        return TC_ACT_SHOT;

    struct answer ack = {
        .seq = acknowledged(&a->handshake),
        .ack = first_byte(&a->handshake),
        .window = window_field(a),
        .flags = FLAG_ACK,
    };
    __u32 value = 0, echo = 0;

    if (options_stamps(&a->frame, &value, &echo))
        ack.options_size = options_emit_stamps(&a->made, echo, value);
    return send_answer(skb, &ack);
}
