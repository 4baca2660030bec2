/* Segments of connections that have their node. */
#pragma once

#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/pkt_cls.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "activity.h"
#include "balancer/arrival.h"
#include "balancer/egress.h"
#include "balancer/rest.h"
#include "clock.h"
#include "counters.h"
#include "frame.h"

/* What is read first of any packet. */
struct look {
    struct iphdr ip;
    struct tcphdr tcp;
};

#define PLAIN_MASK (FLAG_FIN | FLAG_SYN | FLAG_RST | FLAG_ACK)
#define VERSION_AND_SIZE 0x45
#define NOT_PLAIN (-2)

/* Bytes of payload of a plain segment: IPv4 without options, unfragmented, TCP with ACK and without SYN,
 * FIN and RST, headers whole. Negative for everything else. `held` is bytes of the packet from the IP
 * header on. */
static __always_inline int plain_payload(const struct look *look, __u32 held)
{
    const __u8 *ip = (const __u8 *)&look->ip, *tcp = (const __u8 *)&look->tcp;
    __u32 total = bpf_ntohs(look->ip.tot_len), tcp_size = look->tcp.doff * 4;

    if (ip[0] != VERSION_AND_SIZE || look->ip.frag_off & bpf_htons(FRAGMENT_MASK))
        return -1;
    if (look->ip.protocol != IPPROTO_TCP || (tcp[FLAGS_AT] & PLAIN_MASK) != FLAG_ACK || total > held)
        return -1;
    if (tcp_size < TCP_SIZE || total < IP_SIZE + tcp_size)
        return -1;
    return total - IP_SIZE - tcp_size;
}

/* The flow of a plain segment, if it is ordinary data of an open one; it takes note of it. */
static __always_inline struct balancer_flow *plain_flow(const struct look *look, __u8 vip_index,
                                                        __u32 payload)
{
    struct flow_id id = {.client = look->ip.saddr, .client_port = look->tcp.source, .vip_index = vip_index};
    struct balancer_flow *flow = bpf_map_lookup_elem(&flows, &id);
    __u32 start = bpf_ntohl(look->tcp.seq);

    if (!flow || flow->contested_until || flow->client.phase != PHASE_OPEN)
        return NULL;
    if (payload && start == flow->client_isn + 1)
        return NULL;
    activity_advance(&flow->client, start, payload, now_seconds());
    return flow;
}

/* Sends ordinary data of a flow to its node. A verdict, or NOT_PLAIN where the packet is anything else,
 * not ours perhaps. */
__attribute__((noinline)) int forward_plain(struct __sk_buff *skb)
{
    struct balancer_service *service;
    struct balancer_flow *flow;
    struct look look;
    int payload;

    if (bpf_skb_load_bytes(skb, IP_AT, &look, sizeof(look)))
        return NOT_PLAIN;
    payload = plain_payload(&look, skb->len - LINK);
    if (payload < 0)
        return NOT_PLAIN;
    service = service_at(look.ip.daddr, look.tcp.dest);
    if (!service)
        return TC_ACT_UNSPEC;
    flow = plain_flow(&look, service->vip_index, payload);
    if (!flow)
        return NOT_PLAIN;
    if (goes_round(skb, flow, bpf_ntohl(look.tcp.ack_seq)))
        return go_round(skb);
    count(COUNT_FORWARD_PLAIN);
    return leave_for_node(skb, &look.ip, flow->node, service, look.tcp.doff * 4);
}

/* Any other segment of a flow. A verdict. */
__attribute__((noinline)) int forward(struct __sk_buff *skb, struct balancer_flow *flow)
{
    struct arrival *a = arrival_here();

    if (!a || !flow)
        return TC_ACT_SHOT;
    if (goes_round(skb, flow, a->ack))
        return go_round(skb);
    activity_observe(&flow->client, a->seq, a->flags, a->frame.payload, a->now);
    if (flow->contested_until && a->now >= flow->contested_until)
        flow->contested_until = 0;
    count(COUNT_FORWARD);
    return leave_for_node(skb, &a->frame.ip, flow->node, &a->service, a->frame.tcp_size);
}
