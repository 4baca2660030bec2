/* Which event a segment is to the connection that it claims to belong to, as balancer/core/classify.py
 * says. */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "balancer/arrival.h"
#include "balancer/greet.h"
#include "frame.h"
#include "seq.h"

/* Combinations that no client's state allows (RFC 9293 section 3.10.7). */
static __always_inline int has_bad_flags(__u8 flags)
{
    if (flags & FLAG_SYN && flags & (FLAG_ACK | FLAG_FIN | FLAG_RST))
        return 1;
    if (flags & FLAG_RST && flags & FLAG_FIN)
        return 1;
    return !(flags & (FLAG_SYN | FLAG_ACK | FLAG_RST));
}

/* Before anybody has answered the client, of which nothing is held. */
static __always_inline enum event event_of_preamble(const struct arrival *a, const struct handshake *h)
{
    __s32 at = seq_distance(first_byte(h), a->seq);
    __u32 payload = a->frame.payload;

    if (a->flags & FLAG_RST)
        return at == 0 ? EVENT_RST : EVENT_IMPLAUSIBLE_RST;
    if (a->ack != acknowledged(h))
        return EVENT_STRAY;
    if (at == -1 && payload <= 1 && !(a->flags & FLAG_FIN))
        return EVENT_KEEPALIVE;
    if (at < 0 || (__s64)at + payload > preamble_window(&a->service))
        return EVENT_STRAY;
    if (!payload && !(a->flags & FLAG_FIN))
        return EVENT_ACK;
    return payload || at ? EVENT_PAYLOAD : EVENT_FIN;
}

/* A first payload that comes very late is data: a node that does not know the flow shall not begin it. The
 * flow may be younger than it seems by less than a second, but not older. */
static __always_inline enum event event_of_flow(const struct arrival *a, const struct balancer_flow *flow)
{
    if (a->seq != flow->client_isn + 1 || a->ack != flow->isn + 1 || !a->frame.payload)
        return EVENT_SEGMENT;
    return now_ns() > (flow->begun + (__u64)HANDOFF_MAX_AGE) * NS_PER_SECOND ? EVENT_SEGMENT : EVENT_AGAIN;
}

/* The same event where an old connection of the 4-tuple still stands. */
static __always_inline enum event event_as_newer(enum event newer, enum event older)
{
    if (newer == EVENT_STRAY)
        return older;
    return newer == EVENT_PAYLOAD ? EVENT_NEW_PAYLOAD : EVENT_NEW_ACK;
}

/* Sets state, event, and the handshake that the segment belongs to. */
__attribute__((noinline)) int classify(void)
{
    struct arrival *a = arrival_here();

    if (!a)
        return 0;

    struct handshake *h = &a->handshake;
    struct handshake newer = {};
    struct balancer_flow *flow = flow_of(a);
    struct handshake *known = flow ? NULL : verified_of(a);
    enum event event = EVENT_STRAY;
    int is_doubtful;

    a->state = flow ? STATE_ESTABLISHED : known ? STATE_VERIFIED : STATE_UNKNOWN;
    a->event = EVENT_SYN;
    if (a->flags & FLAG_SYN)
        return 0;
    *h = (struct handshake){};
    if (flow) {
        h->client_isn = flow->client_isn;
        h->isn = flow->isn;
        event = event_of_flow(a, flow);
        is_doubtful = a->now < flow->contested_until;
    } else {
        if (known) {
            *h = *known;
            event = event_of_preamble(a, h);
        }
        is_doubtful = event == EVENT_STRAY;
    }
    a->event = event;
    if (!is_doubtful || !recognise(&newer))
        return 0;
    if ((flow || known) && newer.client_isn == h->client_isn && newer.isn == h->isn)
        return 0;
    *h = newer;
    event = event_of_preamble(a, h);
    a->event = flow ? event_as_newer(event, a->event) : event;
    return 0;
}
