/* Handing a connection to its node (docs/design.md section 3, step 4, and section 4).
 *
 * The handoff is made of the packet that the payload came in: the payload is taken out, the packet gets
 * its new size, the payload is put back behind a header of 56 bytes. */
#pragma once

#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/pkt_cls.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "activity.h"
#include "balancer/answer.h"
#include "balancer/arrival.h"
#include "balancer/egress.h"
#include "balancer/rest.h"
#include "clock.h"
#include "counters.h"
#include "frame.h"
#include "handoff.h"
#include "tcp_options.h"

#define MAX_WINDOW 0xffff

/* 0, or negative where the packet has not so many bytes of payload. The last byte's place is compared,
 * because kernel 6.1's verifier learns no lower bound of a size from its comparison with 0. */
static __always_inline int take_payload(struct __sk_buff *skb, struct arrival *a, __u32 size)
{
    __u64 last = (__u64)size - 1;

    if (last >= HANDOFF_MAX_PAYLOAD)
        return -1;
    barrier_var(last);
    return bpf_skb_load_bytes(skb, TCP_AT + a->frame.tcp_size, a->payload, last + 1);
}

static __always_inline int put_payload(struct __sk_buff *skb, struct arrival *a, __u32 size)
{
    __u64 last = (__u64)size - 1;

    if (last >= HANDOFF_MAX_PAYLOAD)
        return -1;
    barrier_var(last);
    return bpf_skb_store_bytes(skb, TCP_AT + HANDOFF_HEADER_SIZE, a->payload, last + 1, 0);
}

/* a->made becomes the handoff, of `size` bytes of payload and FIN or not. 0, or -1 where there is no key. */
__attribute__((noinline)) int make_handoff(struct balancer_flow *flow, __u32 size, int fin)
{
    struct arrival *a = arrival_here();

    if (!a || !flow)
        return -1;

    struct frame *was = &a->frame, *is = &a->made;
    __u32 scale = flow->window_scale == NO_SCALE ? 0 : flow->window_scale;
    __u32 window = (__u32)bpf_ntohs(was->tcp.window) << (scale & 15);

    a->handoff = (struct handoff){
        .seq = flow->client_isn,
        .ack = flow->isn,
        .window = window > MAX_WINDOW ? MAX_WINDOW : window,
        .mss = flow->mss,
        .time = wall_seconds(),
        .window_scale = flow->window_scale,
        .options = flow->options & OPTION_SACK,
        .promised_scale = flow->window_scale == NO_SCALE ? 0 : a->service.promised_scale,
        .fin = fin,
    };
    if (flow->options & OPTION_TIMESTAMPS && options_stamps(was, &a->handoff.value, &a->handoff.echo))
        a->handoff.options |= OPTION_TIMESTAMPS;
    is->ip = was->ip;
    is->ip.daddr = flow->node;
    is->ip.tos = a->service.vip_index << 2 | (was->ip.tos & ECN_MASK);
    is->tcp = was->tcp;
    is->payload = size;
    handoff_emit(is, &a->handoff);
    frame_set_sizes(is, HANDOFF_HEADER_SIZE, size);
    ip_fresh(&is->ip);
    return handoff_sign(is);
}

/* Computes the TCP checksum of the packet, which is as f says, anew. 0, or negative. */
static __always_inline int finish_checksum(struct __sk_buff *skb, struct frame *f)
{
    __u32 sum = 0;
    __u16 check;

    if (skb_sum(skb, TCP_AT, f->tcp_size + f->payload, &sum))
        return -1;
    check = ~sum_fold(pseudo_sum(f) + sum);
    return bpf_skb_store_bytes(skb, TCP_CHECK_AT, &check, sizeof(check), 0);
}

static __always_inline int store_headers(struct __sk_buff *skb, struct frame *f)
{
    f->tcp.check = 0;
    return bpf_skb_store_bytes(skb, IP_AT, f, IP_SIZE + (f->tcp_size & TCP_SIZE_MASK), 0);
}

/* Sends what a superpacket has behind its first `size` bytes of payload to ourselves, where it comes again
 * as ordinary data of the flow. The kernel sees that its checksum is not to be computed any more, and
 * computes it only where it cuts the packet; where there is nothing left to cut it is done here. 0, or
 * negative. */
static __always_inline int send_rest(struct __sk_buff *skb, struct arrival *a, __u32 size)
{
    struct frame *was = &a->frame, *is = &a->made;
    __u32 rest = was->payload - size, mark = skb->mark;
    long error;

    *is = *was;
    is->tcp.seq = bpf_htonl(a->seq + size);
    frame_set_sizes(is, was->tcp_size, rest);
    ip_update(&was->ip, &is->ip);
    if (bpf_skb_adjust_room(skb, -(__s32)size, BPF_ADJ_ROOM_NET, BPF_F_ADJ_ROOM_FIXED_GSO))
        return -1;
    if (store_headers(skb, is))
        return -1;
    if (rest <= skb->gso_size) {
        if (frame_resize(skb, IP_SIZE + is->tcp_size + rest) || finish_checksum(skb, is))
            return -1;
    }
    skb->mark = WENT_ROUND;
    error = bpf_clone_redirect(skb, skb->ifindex, BPF_F_INGRESS);
    skb->mark = mark;
    return error;
}

/* 0, or negative where the packet cannot be changed. */
static __always_inline int replace_whole(struct __sk_buff *skb, struct arrival *a, __u32 size)
{
    if (frame_resize(skb, IP_SIZE + HANDOFF_HEADER_SIZE + size))
        return -1;
    if (frame_commit(skb, &a->frame, &a->made, 0))
        return -1;
    return put_payload(skb, a, size);
}

static __always_inline int replace_cut(struct __sk_buff *skb, struct arrival *a, __u32 size)
{
    if (frame_resize(skb, IP_SIZE + HANDOFF_HEADER_SIZE + size))
        return -1;
    if (store_headers(skb, &a->made) || put_payload(skb, a, size))
        return -1;
    return finish_checksum(skb, &a->made);
}

/* Whether the payload fits into a handoff, or can be cut: of what is no superpacket Python does it. */
static __always_inline int fits_handoff(struct __sk_buff *skb, const struct arrival *a)
{
    return a->frame.payload <= a->service.max_payload || skb->gso_size;
}

/* The segment at the stream's start as handoff, for which `fits_handoff`. A verdict. */
__attribute__((noinline)) int hand_off(struct __sk_buff *skb, struct balancer_flow *flow)
{
    struct arrival *a = arrival_here();

    if (!a || !flow)
        return TC_ACT_SHOT;

    __u32 size = a->frame.payload;
    int is_cut = size > a->service.max_payload;
    int fin = a->flags & FLAG_FIN && !is_cut;
    struct route way;

    if (is_cut) {
        size = a->service.max_payload;
        flow->options |= FIRST_WAS_CUT;
    }
    activity_observe(&flow->client, a->seq, a->flags, a->frame.payload, a->now);
    if (take_payload(skb, a, size) || (is_cut && send_rest(skb, a, size)))
        goto unwritable;
    if (make_handoff(flow, size, fin)) {
        count(COUNT_DROPPED_UNSIGNED);
        return TC_ACT_SHOT;
    }
    if (is_cut ? replace_cut(skb, a, size) : replace_whole(skb, a, size))
        goto unwritable;
    count(COUNT_HANDOFFS);
    count_more(COUNT_BYTES_TO_NODES, bpf_ntohs(a->made.ip.tot_len));
    way = way_to_node(flow->node, bpf_ntohs(a->made.ip.tot_len), a->service.node_mtu, a->made.ip.ttl);
    return leave_by(&way);
unwritable:
    count(COUNT_DROPPED_UNWRITABLE);
    return TC_ACT_SHOT;
}
