/* A flow's packets on their way through the splice (common/wire/rewrite.py, packetbridge/core/actions.py). */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "activity.h"
#include "clock.h"
#include "frame.h"
#include "packetbridge/flows.h"
#include "packetbridge/passage.h"
#include "rewrite.h"
#include "seq.h"
#include "tcp_options.h"

/* Whether both legs have the same numbers. */
static __always_inline int is_adopted(const struct bridge_flow *flow)
{
    return flow->state == STATE_ADOPTED || flow->state == STATE_ADOPTING;
}

/* Makes of `is`, the client's segment as it came, the one that the backend is to see. */
static __always_inline void translate_to_backend(struct passage *p)
{
    struct frame *is = p->is;

    is->ip.daddr = p->service->backend;
    is->ip.tos &= ECN_MASK;
    is->tcp.dest = p->service->backend_port;
    if (is_adopted(p->flow))
        return;
    rewrite_numbers(is, 0, -p->flow->seq_delta, 0, -p->flow->value_delta, p->flow->client_shift);
}

/* To the local stack. The first payload goes there through this CPU's backlog (splice.h), and what the client
 * sends behind it follows the same way, until an answer shows that it has arrived: so nothing overtakes it. A
 * first payload that a listener adopts is there at once, but segments that were too early for it come from the
 * backlog. */
static __always_inline int deliver(struct __sk_buff *skb, const struct passage *p)
{
    if (bpf_ntohl(p->was->tcp.ack_seq) != p->flow->balancer_isn + 1 || (is_adopted(p->flow) && p->went_round))
        return TC_ACT_UNSPEC;
    return to_stack(skb);
}

/* Puts `is`, the packet with other addresses and numbers, into the packet. 0, or a negative error. */
static __always_inline int commit(struct __sk_buff *skb, struct passage *p)
{
    ip_update(&p->was->ip, &p->is->ip);
    if (is_adopted(p->flow) && p->service->vip_port == p->service->backend_port)
        return frame_commit_ip(skb, p->was, p->is);
    return frame_commit(skb, p->was, p->is, 0);
}

/* The packet, now as in `is`, goes on to the other end. A superpacket counts as it is. */
static __always_inline void count_forwarded(enum counter counter, const struct frame *is)
{
    count_more(counter, IP_SIZE + is->tcp_size + is->payload);
}

/* The packet goes on to the local stack. */
static __noinline int forward_to_backend(struct __sk_buff *skb, struct passage *p)
{
    *p->is = *p->was;
    translate_to_backend(p);
    if (commit(skb, p))
        return drop(COUNT_UNWRITTEN);
    count_forwarded(COUNT_BYTES_TO_BACKENDS, p->is);
    return deliver(skb, p);
}

/* The client still echoes the balancer; the backend is told the oldest TSval of its own instead, and always
 * if `is_floor`. */
static __noinline int forward_with_known_echo(struct __sk_buff *skb, struct passage *p, int is_floor)
{
    __u32 value, echo;
    int at;

    *p->is = *p->was;
    translate_to_backend(p);
    at = options_stamps(p->is, &value, &echo);
    if (at && (is_floor || seq_lt(echo, p->flow->floor)))
        set_echo(p->is, at, p->flow->floor);
    if (commit(skb, p))
        return drop(COUNT_UNWRITTEN);
    count_forwarded(COUNT_BYTES_TO_BACKENDS, p->is);
    return deliver(skb, p);
}

/* The packet goes on to the client. */
static __noinline int forward_to_client(struct __sk_buff *skb, struct passage *p)
{
    struct frame *is = p->is;

    *is = *p->was;
    is->ip.saddr = p->service->vip;
    is->ip.tos &= ECN_MASK;
    is->tcp.source = p->service->vip_port;
    if (!is_adopted(p->flow))
        rewrite_numbers(is, p->flow->seq_delta, 0, p->flow->value_delta, 0, p->flow->backend_shift);
    if (commit(skb, p))
        return drop(COUNT_UNWRITTEN);
    count_forwarded(COUNT_BYTES_TO_CLIENTS, is);
    return TC_ACT_UNSPEC;
}

/* Takes note of the segment, which that end of the flow `p->flow` sent. */
static __always_inline void observe(struct passage *p, struct activity *end)
{
    const struct frame *f = p->was;

    activity_observe(end, bpf_ntohl(f->tcp.seq), frame_flags(f), f->payload, now_seconds());
    flow_settle(&p->id, p->flow);
}
