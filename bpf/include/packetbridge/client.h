/* What a packet of the client is to its flow, and what follows (packetbridge/core/events.py, machine.py). */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "activity.h"
#include "limit.h"
#include "packetbridge/admission.h"
#include "packetbridge/adoption.h"
#include "packetbridge/first_segment.h"
#include "packetbridge/flows.h"
#include "packetbridge/forward.h"
#include "packetbridge/intake.h"
#include "packetbridge/opening.h"
#include "packetbridge/passage.h"
#include "packetbridge/segments.h"
#include "seq.h"
#include "tcp_options.h"

/* Whether the client echoes a TSval that came through the splice. */
static __always_inline int is_new_echo(struct passage *p)
{
    __u32 value, echo;

    if (!options_stamps(p->was, &value, &echo))
        return 0;
    return seq_ge(echo - p->flow->value_delta, p->flow->floor);
}

/* Whether Python has kept the segment until the backend had answered. It was observed when it came. It may be
 * what ends the handshake, so it echoes no other TSval than the SYN-ACK's. */
static __always_inline int has_waited(struct __sk_buff *skb)
{
    return skb->ifindex == tun_ifindex;
}

static __always_inline int spliced_segment(struct __sk_buff *skb, struct passage *p)
{
    if (!has_waited(skb))
        observe(p, &p->flow->client);
    if (p->flow->state == STATE_ECHOING)
        return forward_with_known_echo(skb, p, has_waited(skb));
    return forward_to_backend(skb, p);
}

static __always_inline int client_reset(struct __sk_buff *skb, struct passage *p)
{
    struct bridge_flow *flow = p->flow;
    int in_order = flow && bpf_ntohl(p->was->tcp.seq) == flow->client.next;

    count(in_order ? COUNT_CLIENT_RST_IN_ORDER : COUNT_CLIENT_RST_ELSEWHERE);
    if (!flow)
        return TC_ACT_SHOT;
    if (flow->state != STATE_OPENING)
        return spliced_segment(skb, p);
    return in_order ? abort_opening(skb, p) : TC_ACT_SHOT;
}

/* Python remembers it, until its handoff comes or it is to be answered with a RST. */
static __always_inline int stranger(void)
{
    if (!limit_take_at(LIMIT_STRANGERS, strangers_per_second))
        return drop(COUNT_STRANGERS_LIMITED);
    count(COUNT_STRANGERS_PASSED_UP);
    return to_python();
}

/* Whether an early segment is to go through this CPU's backlog first, for which it is marked: often the handoff
 * was the packet before it, of the same poll, and is on its way to the backend. */
static __always_inline int goes_round(struct __sk_buff *skb, const struct passage *p)
{
    if (p->went_round || skb->mark || has_waited(skb))
        return 0;
    skb->mark = WENT_ROUND;
    return 1;
}

/* The segment waits with Python, which writes it to its TUN when the backend has answered. It does so at once
 * where a listener adopts: there the first payload is on its way, on another CPU perhaps. */
static __always_inline int early_segment(struct passage *p)
{
    observe(p, &p->flow->client);
    count(COUNT_EARLY);
    return to_python();
}

/* Whether the flow's backend has no socket yet that takes segments. */
static __always_inline int is_too_early(struct __sk_buff *skb, const struct passage *p)
{
    if (!p->flow)
        return 0;
    return p->flow->state == STATE_OPENING || (p->flow->state == STATE_ADOPTING && is_unadopted(skb, p));
}

/* A segment that is no handoff and needs more than to be forwarded. */
static __noinline int client_segment_event(struct __sk_buff *skb, struct passage *p)
{
    __u8 flags = frame_flags(p->was), control = flags & (FLAG_SYN | FLAG_ACK | FLAG_RST | FLAG_FIN);
    int is_early;

    if (control != FLAG_ACK && control != (FLAG_ACK | FLAG_FIN) && (control & ~FLAG_ACK) != FLAG_RST)
        return drop(COUNT_ABSURD_FLAGS);
    if (flags & FLAG_RST)
        return client_reset(skb, p);
    if (p->flow && p->flow->state == STATE_ECHOING && !has_waited(skb) && is_new_echo(p)) {
        count(COUNT_NEW_ECHO);
        p->flow->state = STATE_ESTABLISHED;
        return spliced_segment(skb, p);
    }
    is_early = is_too_early(skb, p);
    if (is_early && goes_round(skb, p))
        return to_stack(skb);
    count(COUNT_CLIENT_SEGMENT);
    if (!p->flow)
        return stranger();
    if (!is_early)
        return spliced_segment(skb, p);
    if (p->flow->state == STATE_ADOPTING && has_waited(skb))
        return drop(COUNT_UNADOPTED);
    return early_segment(p);
}

/* A handoff of a connection that has ended and of which nothing is known: the server gets nothing. A client
 * that still asks has lost the RST that ended its flow. */
static __noinline int refuse_replay(struct __sk_buff *skb, struct passage *p, const struct handoff *offered)
{
    bury(&p->id, offered->seq, offered->ack);
    if (!limit_take_at(LIMIT_RESETS, resets_per_second))
        return drop(COUNT_STRANGER_RESET_LIMITED);
    count(COUNT_STRANGER_RESET);
    client_segment(p, offered->ack + 1, 0, FLAG_RST);
    return become(skb, p, to_routing());
}

static __noinline int handoff_event(struct __sk_buff *skb, struct passage *p)
{
    struct admitted *admitted = &p->scratch->admitted;
    const struct handoff *offered = &admitted->handoff;
    struct bridge_flow *flow = p->flow;
    int reason = admit(p->was, admitted);

    if (reason)
        return drop(reason);
    if (flow && flow->client_isn == offered->seq && flow->balancer_isn == offered->ack) {
        if (flow->state == STATE_OPENING)
            return open_again(skb, p, offered);
        if (flow->state == STATE_ADOPTING)
            return adopt_again(skb, p, offered);
        return forward_first_again(skb, p, offered);
    }
    if (is_buried(&p->id, offered->seq, offered->ack)) {
        count(COUNT_REPLAYED_HANDOFF);
        return flow ? TC_ACT_SHOT : refuse_replay(skb, p, offered);
    }
    if (flow && seq_lt(admitted->time, flow->time))
        return drop(COUNT_OLDER_HANDOFF);
    return begin_flow(skb, p, admitted);
}

/* A tagged TCP packet to the bridge address and a service's port, its headers being in `p->was`. */
static __always_inline int from_client(struct __sk_buff *skb, struct passage *p)
{
    struct frame *was = p->was;
    struct bridge_flow *flow;

    p->id = (struct flow_id){
        .client = was->ip.saddr,
        .client_port = was->tcp.source,
        .vip_index = was->ip.tos >> DSCP_SHIFT,
    };
    flow = bpf_map_lookup_elem(&flows, &p->id);
    p->flow = flow;
    if (flow && flow->state >= STATE_ESTABLISHED && flow->client.phase == PHASE_OPEN && is_plain(was)) {
        activity_advance(&flow->client, bpf_ntohl(was->tcp.seq), was->payload, now_seconds());
        return forward_to_backend(skb, p);
    }
    if (!ip_checksum_holds(&was->ip))
        return drop(COUNT_BAD_IP_CHECKSUM);
    if (frame_flags(was) & FLAG_SYN)
        return handoff_event(skb, p);
    return client_segment_event(skb, p);
}
