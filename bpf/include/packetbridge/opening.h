/* The backend leg's handshake, opened as the client would have opened it (packetbridge/core/opening.py).
 *
 * The handoff's payload waits in the stash for the SYN-ACK. The client's retransmissions serve as the timer
 * of the SYN; one that carries more takes the place of what waits. */
#pragma once

#include <linux/bpf.h>
#include <linux/errno.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "activity.h"
#include "checksum.h"
#include "clock.h"
#include "packetbridge/admission.h"
#include "packetbridge/first_segment.h"
#include "packetbridge/flows.h"
#include "packetbridge/passage.h"
#include "packetbridge/segments.h"

/* Takes the handoff's payload, and what belongs to it, into `kept`. 0, or the counter of the reason against
 * it. Nobody behind us can verify the payload, so that is done here. */
static __noinline int keep_payload(struct __sk_buff *skb, const struct passage *p, struct stash *kept,
                                   const struct handoff *offered)
{
    struct frame *was = p->was;
    __u32 at = TCP_AT + HANDOFF_HEADER_SIZE, sum = 0;
    __u64 size;
    __u64 pseudo = pseudo_sum(was);

    if (bound_size(was->payload, &size))
        return COUNT_BAD_HANDOFF_PAYLOAD;
    if (bpf_skb_load_bytes(skb, at, kept->payload, size) || skb_sum(skb, at, size, &sum))
        return COUNT_TRUNCATED;
    if (was->tcp.check != sum_fold(pseudo) && sum_fold((__u64)headers_sum(was) + sum) != 0xffff)
        return COUNT_BAD_CHECKSUM;
    kept->head.sum = sum;
    kept->head.size = size;
    kept->head.waiting_value = offered->options & OPTION_TIMESTAMPS ? offered->value : kept->head.value;
    kept->head.waiting_window = offered->window;
    kept->head.identification = was->ip.id;
    kept->head.fragment = was->ip.frag_off;
    kept->head.fin = offered->fin;
    kept->head.ecn = was->ip.tos & ECN_MASK;
    return 0;
}

static __always_inline void fill_head(struct stash_head *head, const struct handoff *offered,
                                      const struct bridge_flow *replaced)
{
    *head = (struct stash_head){
        .replaced_isn = replaced ? replaced->client_isn : 0,
        .value = offered->value,
        .echo = offered->echo,
        .window = offered->window,
        .mss = offered->mss,
        .window_scale = offered->window_scale,
        .promised_scale = offered->promised_scale,
        .options = offered->options,
        .has_replaced = !!replaced,
    };
}

/* Puts the flow into the map, in the place of `p->flow` if there is one that no other CPU has claimed. 0, or
 * a negative error. */
static __always_inline long flow_put(struct passage *p, const struct bridge_flow *made)
{
    struct open_flows *of_vip = turning(&p->id);
    __u32 stood = p->flow ? flow_claim(p->flow) : STANDING_LEAVING;
    int replaces = stood != STANDING_LEAVING;
    long error = bpf_map_update_elem(&flows, &p->id, made, replaces ? BPF_EXIST : BPF_NOEXIST);

    if (p->flow && replaces && error && error != -ENOENT)
        p->flow->standing = stood;
    if (!error && !replaces)
        count(COUNT_FLOWS_ADDED);
    turned(of_vip, error || stood == STANDING_COUNTED ? 0 : 1);
    return error;
}

/* Puts the flow, made in scratch, into the map, in the place of `p->flow` if there is one, whose connection
 * is buried. 0, or the counter of the reason against it. */
static __always_inline int flow_begin(struct passage *p, const struct admitted *admitted, enum state state)
{
    const struct handoff *offered = &admitted->handoff;
    struct bridge_flow *made = &p->scratch->flow;
    __u32 replaced_client = p->flow ? p->flow->client_isn : 0;
    __u32 replaced_balancer = p->flow ? p->flow->balancer_isn : 0;
    long error;

    *made = (struct bridge_flow){
        .client_isn = offered->seq,
        .balancer_isn = offered->ack,
        .time = admitted->time,
        .state = state,
        .attempts = state == STATE_ADOPTING,
        .standing = STANDING_COUNTED,
    };
    activity_begin(&made->client, offered->seq + 1, now_seconds());
    activity_begin(&made->backend, state == STATE_ADOPTING ? offered->ack + 1 : 0, now_seconds());
    observe_first(&made->client, p, offered);
    error = flow_put(p, made);
    if (error == -EEXIST)
        return COUNT_SAME_HANDOFF; /* a copy of it, on another CPU at this moment */
    if (error) {
        ask_for_room();
        return COUNT_FLOWS_FULL;
    }
    if (p->flow)
        bury(&p->id, replaced_client, replaced_balancer);
    return 0;
}

/* The same for a flow that waits for its backend, with what is stashed in scratch. */
static __always_inline int opening_begin(struct passage *p, const struct admitted *admitted)
{
    int reason = flow_begin(p, admitted, STATE_OPENING);
    struct bridge_flow *begun;

    if (reason)
        return reason;
    if (!bpf_map_update_elem(&stash, &p->id, &p->scratch->stash, BPF_ANY))
        return 0;
    begun = bpf_map_lookup_elem(&flows, &p->id);
    if (begun)
        flow_forget(&p->id, begun);
    return COUNT_WAITING_FULL;
}

/* A valid handoff of an unknown flow, or of a later connection than `p->flow`'s: the packet becomes the
 * SYN. */
static __always_inline int open_flow(struct __sk_buff *skb, struct passage *p,
                                     const struct admitted *admitted)
{
    const struct handoff *offered = &admitted->handoff;
    struct stash *kept = &p->scratch->stash;
    int reason;

    fill_head(&kept->head, offered, p->flow);
    reason = keep_payload(skb, p, kept, offered);
    if (!reason)
        reason = opening_begin(p, admitted);
    if (reason)
        return drop(reason);
    count(p->flow ? COUNT_NEWER_HANDOFF : COUNT_HANDOFF);
    make_syn(p, &kept->head, offered->seq);
    return become(skb, p, TC_ACT_UNSPEC);
}

/* The client retransmits its first payload, with more behind it or without: the packet becomes the SYN. */
static __always_inline int open_again(struct __sk_buff *skb, struct passage *p, const struct handoff *offered)
{
    struct activity *client = &p->flow->client;
    struct stash *kept = bpf_map_lookup_elem(&stash, &p->id);
    struct stash *again = &p->scratch->stash;
    __u32 known_next = client->next, known_phase = client->phase;
    int reason;

    if (kept)
        again->head = kept->head;
    else
        fill_head(&again->head, offered, NULL);
    reason = keep_payload(skb, p, again, offered);
    if (reason)
        return drop(reason);
    count(COUNT_SAME_HANDOFF);
    observe_first(client, p, offered);
    if (!kept || client->next != known_next || client->phase != known_phase)
        bpf_map_update_elem(&stash, &p->id, again, BPF_ANY);
    make_syn(p, &again->head, offered->seq);
    return become(skb, p, TC_ACT_UNSPEC);
}

/* The client gives up before the backend has answered: the packet becomes its RST. */
static __always_inline int abort_opening(struct __sk_buff *skb, struct passage *p)
{
    backend_segment(p, p->flow->client_isn + 1, 0, FLAG_RST, 0);
    segment_end(p->is, 0, 0);
    flow_end(&p->id, p->flow);
    return become(skb, p, TC_ACT_UNSPEC);
}

/* The backend still has an older connection: end it, and ask again. */
static __noinline int reset_and_retry(struct __sk_buff *skb, struct passage *p)
{
    struct stash *kept = bpf_map_lookup_elem(&stash, &p->id);

    if (!kept)
        return drop(COUNT_WAITING_FULL);
    if (kept->head.retries >= MAX_RETRIES)
        return drop(COUNT_OPENING_RETRIES_EXHAUSTED);
    kept->head.retries++;
    make_reset_for_backend(p);
    if (link_swap(skb) || send_clone_to_stack(skb, p))
        return drop(COUNT_UNWRITTEN);
    make_syn(p, &kept->head, p->flow->client_isn);
    return become(skb, p, to_stack(skb));
}
