/* Joining the two legs when the backend's SYN-ACK comes (packetbridge/core/splice.py).
 *
 *     seq delta    Li - Si          server to client: seq += delta; client to server: ack and SACK -= delta
 *     value delta  X + 1 - TSval_b  server to client: TSval += delta; client to server: TSecr -= delta
 */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "activity.h"
#include "clock.h"
#include "link.h"
#include "packetbridge/flows.h"
#include "packetbridge/forward.h"
#include "packetbridge/passage.h"
#include "packetbridge/segments.h"
#include "rewrite.h"
#include "tcp_options.h"

/* For what the handoff says of the client leg and the SYN-ACK of the backend leg. */
static __always_inline void join(struct bridge_flow *flow, const struct stash_head *begun,
                                 const struct frame *syn_ack, const struct said *said)
{
    __u32 backend_isn = bpf_ntohl(syn_ack->tcp.seq);
    int has_stamps = begun->options & OPTION_TIMESTAMPS;
    int backend_scales = said->window_scale != NO_SCALE;
    int is_scaled = begun->window_scale != NO_SCALE;

    flow->seq_delta = flow->balancer_isn - backend_isn;
    flow->value_delta = has_stamps ? begun->echo + 1 - said->value : 0;
    flow->floor = has_stamps ? said->value : 0;
    flow->backend_shift = is_scaled ? (backend_scales ? said->window_scale : 0) - begun->promised_scale : 0;
    flow->client_shift = is_scaled && !backend_scales ? begun->window_scale : 0;
    activity_begin(&flow->backend, backend_isn + 1, now_seconds());
    COMPILER_BARRIER(); /* another CPU that sees the state sees what goes with it */
    flow->state = has_stamps ? STATE_ECHOING : STATE_ESTABLISHED;
}

/* The client's first segment as the backend is to see it: it ends the backend's handshake. */
static __always_inline void make_first_segment(struct passage *p, const struct stash_head *begun)
{
    const struct bridge_flow *flow = p->flow;
    __u8 flags = FLAG_ACK | FLAG_PSH | (begun->fin ? FLAG_FIN : 0);
    int scale = begun->window_scale == NO_SCALE ? 0 : begun->window_scale;
    __u16 window = shift_window(begun->waiting_window >> (scale & 15), flow->client_shift);
    __u32 options_size = 0;

    backend_segment(p, flow->client_isn + 1, flow->balancer_isn + 1 - flow->seq_delta, flags, window);
    if (begun->options & OPTION_TIMESTAMPS)
        options_size = options_emit_stamps(p->is, begun->waiting_value, flow->floor);
    p->is->ip.tos = begun->ecn;
    segment_end(p->is, options_size, begun->size);
    ip_identify(&p->is->ip, begun->identification, begun->fragment);
}

/* Writes what waits behind the header of `p->is`, as which the packet is committed. 0, or -1. */
static __always_inline int send_waiting(struct __sk_buff *skb, struct passage *p, const struct stash *kept)
{
    __u32 diff = sum_fold32((__u64)headers_sum(p->was) + kept->head.sum);
    __u64 size;

    if (bound_size(kept->head.size, &size))
        return -1;
    if (packet_become(skb, p->was, p->is, diff))
        return -1;
    return bpf_skb_store_bytes(skb, TCP_AT + p->is->tcp_size, kept->payload, size, 0);
}

/* The SYN-ACK tells Si: it becomes the client's first segment. */
static __noinline int splice(struct __sk_buff *skb, struct passage *p, struct stash *kept,
                             const struct said *said)
{
    int error;

    join(p->flow, &kept->head, p->was, said);
    make_first_segment(p, &kept->head);
    error = link_swap(skb) || send_waiting(skb, p, kept);
    bpf_map_delete_elem(&stash, &p->id);
    if (error)
        return drop(COUNT_UNWRITTEN);
    count_forwarded(COUNT_BYTES_TO_BACKENDS, p->is);
    return to_stack(skb);
}

/* What the backend that repeats its SYN-ACK waits for. How large the client's window is is not known here. It
 * is said to be 0, because a larger one than the client's would stand until the client's acknowledgment moves
 * on. */
static __noinline int acknowledge_backend(struct __sk_buff *skb, struct passage *p)
{
    __u32 options_size = 0;
    struct said said;

    options_syn(p->was, &said);
    if (said.malformed)
        return drop(COUNT_BAD_TCP_OPTIONS);
    backend_segment(p, bpf_ntohl(p->was->tcp.ack_seq), bpf_ntohl(p->was->tcp.seq) + 1, FLAG_ACK, 0);
    if (said.options & OPTION_TIMESTAMPS)
        options_size = options_emit_stamps(p->is, said.echo, said.value);
    segment_end(p->is, options_size, 0);
    if (link_swap(skb))
        return drop(COUNT_UNWRITTEN);
    return become(skb, p, to_stack(skb));
}

/* The client uses timestamps, the backend does not: neither leg can go on. */
static __noinline int reset_both(struct __sk_buff *skb, struct passage *p)
{
    make_reset_for_backend(p);
    if (link_swap(skb) || send_clone_to_stack(skb, p))
        return drop(COUNT_UNWRITTEN);
    make_refusal(p);
    flow_end(&p->id, p->flow);
    return link_swap(skb) ? drop(COUNT_UNWRITTEN) : become(skb, p, TC_ACT_UNSPEC);
}
