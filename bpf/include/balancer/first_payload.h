/* Choosing a node by a connection's first bytes, as balancer/core/preamble.py and engine.py do where one
 * segment has them all. What takes more is Python's. */
#pragma once

#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "activity.h"
#include "balancer/answer.h"
#include "balancer/arrival.h"
#include "balancer/choice.h"
#include "balancer/claim.h"
#include "balancer/handover.h"
#include "counters.h"
#include "request_line.h"
#include "xxh64.h"

static __always_inline __be32 node_of_client(const struct arrival *a)
{
    struct flow_key key = key_of(a);

    return choose(xxh64_flow_key(&key, a->service.hash_seed));
}

static __always_inline void forget(const struct arrival *a)
{
    bpf_map_delete_elem(&verified, &a->id);
    forget_hello(a);
}

/* The flow with this node, or whichever was there first; a new handshake takes the place of an old flow. NULL
 * where there is no room. */
static __always_inline struct balancer_flow *establish(struct arrival *a, __be32 node)
{
    int replaces = a->event == EVENT_NEW_PAYLOAD;
    const struct handshake *h = &a->handshake;
    struct hello *hello = hello_of(a);
    struct balancer_flow *flow = &a->flow;
    long error;

    *flow = (struct balancer_flow){
        .client_isn = h->client_isn,
        .isn = h->isn,
        .node = node,
        .begun = a->now,
        .contested_until = hello && hello->client_isn != h->client_isn ? a->now + CONTESTED_SECONDS : 0,
        .mss = h->mss,
        .window_scale = h->window_scale,
        .options = h->options,
    };
    activity_begin(&flow->client, first_byte(h), a->now);
    error = bpf_map_update_elem(&flows, &a->id, flow, replaces ? BPF_ANY : BPF_NOEXIST);
    if (error && error != -EEXIST)
        return NULL;
    if (!error)
        count_handed(a, node);
    if (!error && !replaces)
        count(COUNT_FLOWS_ADDED);
    forget(a);
    return flow_of(a);
}

static __always_inline int hand_to(struct __sk_buff *skb, struct arrival *a, __be32 node, enum counter action)
{
    struct balancer_flow *flow = establish(a, node);
    int verdict;

    if (flow) {
        count(action);
        return hand_off(skb, flow);
    }
    verdict = claim(a);
    if (verdict != NOT_CLAIMED)
        return verdict;
    count(COUNT_FLOW_TABLE_FULL);
    return TC_ACT_SHOT;
}

/* Python decides; where it has enough to do, the node is that of the 4-tuple, if the stream's start is
 * here. */
static __always_inline int leave_to_python(struct __sk_buff *skb, struct arrival *a, enum counter action)
{
    int verdict = claim(a);
    __be32 node;

    if (verdict != NOT_CLAIMED)
        return verdict;
    node = node_of_client(a);
    if (!node || a->event == EVENT_FIN || a->seq != first_byte(&a->handshake) || !fits_handoff(skb, a))
        return TC_ACT_SHOT;
    return hand_to(skb, a, node, action);
}

/* What cannot be HTTP, where that is not served. */
static __always_inline int refuse(struct __sk_buff *skb, struct arrival *a, enum counter action)
{
    count(action);
    count(COUNT_NOT_HTTP);
    if (a->event == EVENT_NEW_PAYLOAD && !bpf_map_delete_elem(&flows, &a->id))
        count(COUNT_FLOWS_REMOVED);
    forget(a);
    if (tcp_checksum_holds(skb, &a->frame))
        return send_reset(skb);
    count(COUNT_DROPPED_BAD_CHECKSUM);
    return TC_ACT_SHOT;
}

/* Bytes at the start of the stream, or beyond. A verdict. */
__attribute__((noinline)) int collect(struct __sk_buff *skb)
{
    struct arrival *a = arrival_here();

    if (!a)
        return TC_ACT_SHOT;

    enum counter action = a->event == EVENT_NEW_PAYLOAD ? COUNT_START_OVER : COUNT_COLLECT;
    __be32 node = 0;

    if (a->event == EVENT_FIN || a->seq != first_byte(&a->handshake) || !fits_handoff(skb, a))
        return leave_to_python(skb, a, action);
    switch (request_read(skb, &a->service, TCP_AT + a->frame.tcp_size, a->frame.payload)) {
    case REQUEST_KEY:
        node = choose(request_hash(a->service.hash_seed));
        break;
    case REQUEST_NOT_HTTP:
        if (a->service.non_http == NON_HTTP_RESET)
            return refuse(skb, a, action);
        node = node_of_client(a);
        if (node)
            count(COUNT_NOT_HTTP);
        break;
    default:
        break;
    }
    return node ? hand_to(skb, a, node, action) : leave_to_python(skb, a, action);
}
