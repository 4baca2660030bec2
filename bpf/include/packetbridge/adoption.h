/* Connections that the backend's listener adopts: without a handshake, so both legs have the same numbers.
 *
 * The handoff becomes the client's first segment, and the kernel is told what its listener would know, had it
 * answered the client's SYN as the balancer did: like a SYN cookie that it has found right
 * (bpf_sk_assign_tcp_reqsk, Linux 6.9). The socket that comes of it goes on with the balancer's sequence
 * numbers, timestamps and window scale.
 *
 * Where the kernel or the state of the 4-tuple does not allow that, the backend leg is opened (opening.h).
 * Until the backend has said something, its accept queue may have been full, or the host's firewall may have
 * dropped what it has seen no SYN of. So the listener is given the first payload again with the handoff, and
 * nothing else before; at the third time it is sent a SYN. */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "packetbridge/first_segment.h"
#include "packetbridge/flows.h"
#include "packetbridge/opening.h"
#include "packetbridge/passage.h"

/* Whether the object is for kernels that have bpf_sk_assign_tcp_reqsk. */
#ifndef ADOPT
#define ADOPT 0
#endif

/* How often a listener is given a first payload. A copy of one may come while another CPU makes the socket of
 * it: then the kernel drops the copy. */
#define MAX_ATTEMPTS 2

/* The backend's socket for packets of the flow, or its listener, or NULL; to be released. */
static __always_inline struct bpf_sock *backend_socket(struct __sk_buff *skb, const struct passage *p)
{
    struct bpf_sock_tuple tuple = {};

    tuple.ipv4.saddr = p->id.client;
    tuple.ipv4.daddr = p->service->backend;
    tuple.ipv4.sport = p->id.client_port;
    tuple.ipv4.dport = p->service->backend_port;
    return bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
}

/* Whether a packet of the flow would meet the listener. */
static __noinline int is_unadopted(struct __sk_buff *skb, const struct passage *p)
{
    struct bpf_sock *found = backend_socket(skb, p);
    int is_listener;

    if (!found)
        return 0;
    is_listener = found->state == BPF_TCP_LISTEN;
    bpf_sk_release(found);
    return is_listener;
}

#if ADOPT

struct sock {
    int unused;
};

/* As in include/net/tcp.h. */
struct bpf_tcp_req_attrs {
    __u32 rcv_tsval;
    __u32 rcv_tsecr;
    __u16 mss;
    __u8 rcv_wscale;
    __u8 snd_wscale;
    __u8 ecn_ok;
    __u8 wscale_ok;
    __u8 sack_ok;
    __u8 tstamp_ok;
    __u8 usec_ts_ok;
    __u8 reserved[3];
};
_Static_assert(sizeof(struct bpf_tcp_req_attrs) == 20, "bpf_tcp_req_attrs");

extern int bpf_sk_assign_tcp_reqsk(struct __sk_buff *skb, struct sock *listener,
                                   struct bpf_tcp_req_attrs *attrs, int attrs__sz) __ksym;

/* Has the packet meet the listener as the end of the client's handshake, which it is to become. 0, or
 * negative where the 4-tuple has a socket of its own, the port is closed, or the kernel refuses. */
static __noinline int assign(struct __sk_buff *skb, const struct passage *p, const struct handoff *offered)
{
    int is_scaled = offered->window_scale != NO_SCALE;
    struct bpf_tcp_req_attrs attrs = {
        .rcv_tsval = offered->value,
        .rcv_tsecr = offered->echo,
        .mss = offered->mss,
        .rcv_wscale = is_scaled ? offered->promised_scale : 0,
        .snd_wscale = is_scaled ? offered->window_scale : 0,
        .wscale_ok = is_scaled,
        .sack_ok = !!(offered->options & OPTION_SACK),
        .tstamp_ok = !!(offered->options & OPTION_TIMESTAMPS),
    };
    struct bpf_sock *found = backend_socket(skb, p);
    struct sock *listener;
    int error = -1;

    if (!found)
        return error;
    if (found->state == BPF_TCP_LISTEN) {
        listener = (struct sock *)bpf_skc_to_tcp_sock(found);
        if (listener)
            error = bpf_sk_assign_tcp_reqsk(skb, listener, &attrs, sizeof(attrs));
    }
    bpf_sk_release(found);
    return error;
}

#else

static __always_inline int assign(struct __sk_buff *skb, const struct passage *p,
                                  const struct handoff *offered)
{
    (void)skb, (void)p, (void)offered;
    return -1;
}

#endif

/* A valid handoff of an unknown flow, or of a later connection than `p->flow`'s, and the listener's. */
static __always_inline int adopt_flow(struct __sk_buff *skb, struct passage *p,
                                      const struct admitted *admitted)
{
    int replaces = !!p->flow, replaces_opening = replaces && p->flow->state == STATE_OPENING;
    int reason = flow_begin(p, admitted, STATE_ADOPTING);

    if (reason)
        return drop(reason);
    if (replaces_opening)
        bpf_map_delete_elem(&stash, &p->id);
    count(replaces ? COUNT_NEWER_HANDOFF : COUNT_HANDOFF);
    count(COUNT_ADOPTED);
    p->flow = &p->scratch->flow;
    return forward_first(skb, p, &admitted->handoff);
}

/* A valid handoff of an unknown flow, or of a later connection than `p->flow`'s. */
static __noinline int begin_flow(struct __sk_buff *skb, struct passage *p, const struct admitted *admitted)
{
    if (!ADOPT)
        return open_flow(skb, p, admitted);
    if (!assign(skb, p, &admitted->handoff))
        return adopt_flow(skb, p, admitted);
    count(COUNT_ADOPTION_REFUSED);
    return open_flow(skb, p, admitted);
}

/* The first payload again, of which the backend has said nothing. */
static __noinline int adopt_again(struct __sk_buff *skb, struct passage *p, const struct handoff *offered)
{
    struct bridge_flow *flow = p->flow;

    if (flow->client.phase == PHASE_RESET)
        return drop(COUNT_REPLAYED_HANDOFF);
    if (!is_unadopted(skb, p))
        return forward_first_again(skb, p, offered);
    if (flow->attempts < MAX_ATTEMPTS && !assign(skb, p, offered)) {
        flow->attempts++;
        count(COUNT_ADOPTED);
        return forward_first_again(skb, p, offered);
    }
    count(COUNT_ADOPTION_IN_VAIN);
    flow->state = STATE_OPENING;
    return open_again(skb, p, offered);
}
