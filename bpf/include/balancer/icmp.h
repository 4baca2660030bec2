/* ICMP errors about packets from the VIP to a client go to the flow's node, as if sent by the client
 * (balancer/core/icmp_errors.py). */
#pragma once

#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "balancer/arrival.h"
#include "balancer/egress.h"
#include "counters.h"
#include "frame.h"
#include "icmp_error.h"

/* The service that an ICMP message is about: it is an error and quotes a TCP packet of the VIP that it was
 * sent to. NULL: it is the host's. */
static __always_inline struct balancer_service *service_of_icmp(struct __sk_buff *skb, const struct iphdr *ip,
                                                                struct icmp_error *error)
{
    if (!icmp_load(skb, ip, error) || !icmp_is_error(error) || !icmp_quotes_tcp(error))
        return NULL;
    return error->ip.saddr == ip->daddr ? service_at(ip->daddr, error->source_port) : NULL;
}

/* What is wrong with its IP header or its length: a counter, or negative. */
static __always_inline int fault_of_icmp(struct __sk_buff *skb, const struct iphdr *ip)
{
    __u32 total = bpf_ntohs(ip->tot_len), size = ip->ihl * 4;

    if (total < size || total > skb->len - LINK)
        return COUNT_DROPPED_TRUNCATED;
    if (ip->frag_off & bpf_htons(FRAGMENT_MASK))
        return COUNT_DROPPED_FRAGMENT;
    if (size != IP_SIZE)
        return COUNT_DROPPED_IP_OPTIONS;
    return total < IP_SIZE + sizeof(struct icmp_error) ? COUNT_DROPPED_TRUNCATED : -1;
}

static __always_inline int send_to_node(struct __sk_buff *skb, const struct iphdr *ip,
                                        const struct balancer_service *service, const struct icmp_error *error)
{
    struct flow_id id = {
        .client = error->ip.daddr,
        .client_port = error->destination_port,
        .vip_index = service->vip_index,
    };
    struct balancer_flow *flow = bpf_map_lookup_elem(&flows, &id);

    if (!flow) {
        count(COUNT_DROPPED_ICMP_OF_UNKNOWN_FLOW);
        return TC_ACT_SHOT;
    }
    count(COUNT_FORWARD_ICMP);
    return leave_readdressed(skb, ip, id.client, flow->node, service, bpf_ntohs(ip->tot_len));
}

/* Of an ICMP message that is no later fragment. A verdict. */
__attribute__((noinline)) int receive_icmp(struct __sk_buff *skb)
{
    struct balancer_service *service;
    struct icmp_error error = {};
    struct iphdr ip;
    int fault;

    if (bpf_skb_load_bytes(skb, IP_AT, &ip, sizeof(ip)))
        return TC_ACT_UNSPEC;
    service = service_of_icmp(skb, &ip, &error);
    if (!service)
        return TC_ACT_UNSPEC;
    fault = fault_of_icmp(skb, &ip);
    if (fault < 0)
        return send_to_node(skb, &ip, service, &error);
    count(fault);
    return TC_ACT_SHOT;
}
