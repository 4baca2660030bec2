/* The segment that a handoff was made from (docs/handoff.md), and the handoff turned into it. */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "activity.h"
#include "clock.h"
#include "handoff.h"
#include "packetbridge/flows.h"
#include "packetbridge/forward.h"
#include "packetbridge/passage.h"
#include "packetbridge/segments.h"
#include "rewrite.h"
#include "tcp_options.h"

static __always_inline __u8 first_flags(const struct handoff *offered)
{
    return FLAG_ACK | FLAG_PSH | (offered->fin ? FLAG_FIN : 0);
}

static __always_inline void observe_first(struct activity *client, const struct passage *p,
                                          const struct handoff *offered)
{
    activity_observe(client, offered->seq + 1, first_flags(offered), p->was->payload, now_seconds());
}

/* Makes of the handoff, in `is`, the segment that it was made from, its payload left out. */
static __always_inline void make_first_again(struct passage *p, const struct handoff *offered)
{
    struct frame *was = p->was, *is = p->is;
    int scale = offered->window_scale == NO_SCALE ? 0 : offered->window_scale;
    __u32 options_size = 0;

    is->ip = was->ip;
    is->tcp = (struct tcphdr){
        .source = was->tcp.source,
        .seq = bpf_htonl(offered->seq + 1),
        .ack_seq = bpf_htonl(offered->ack + 1),
        .window = bpf_htons(offered->window >> (scale & 15)),
    };
    frame_set_flags(is, first_flags(offered));
    if (offered->options & OPTION_TIMESTAMPS)
        options_size = options_emit_stamps(is, offered->value, offered->echo);
    frame_set_sizes(is, TCP_SIZE + options_size, was->payload);
}

/* The packet becomes the segment, for the backend of `p->flow`, its payload moved. */
static __noinline int forward_first(struct __sk_buff *skb, struct passage *p, const struct handoff *offered)
{
    __u8 *payload = p->scratch->stash.payload;
    __u64 size;

    make_first_again(p, offered);
    translate_to_backend(p);
    if (p->flow->state == STATE_ECHOING)
        raise_echo(p->is, p->flow->floor);
    ip_update(&p->was->ip, &p->is->ip);
    if (bound_size(p->was->payload, &size))
        return drop(COUNT_BAD_HANDOFF_PAYLOAD);
    if (bpf_skb_load_bytes(skb, TCP_AT + HANDOFF_HEADER_SIZE, payload, size))
        return drop(COUNT_TRUNCATED);
    if (packet_become(skb, p->was, p->is, 0))
        return drop(COUNT_UNWRITTEN);
    if (bpf_skb_store_bytes(skb, TCP_AT + p->is->tcp_size, payload, size, 0))
        return drop(COUNT_UNWRITTEN);
    count_forwarded(COUNT_BYTES_TO_BACKENDS, p->is);
    return TC_ACT_UNSPEC;
}

/* The first payload of a flow that has its backend. */
static __always_inline int forward_first_again(struct __sk_buff *skb, struct passage *p,
                                               const struct handoff *offered)
{
    count(COUNT_SAME_HANDOFF);
    observe_first(&p->flow->client, p, offered);
    flow_settle(&p->id, p->flow);
    return forward_first(skb, p, offered);
}
