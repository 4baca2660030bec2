/* The packetbridge's data plane: tc programs at ingress and egress of every tapped interface, at ingress
 * of the TUN too, and two that Python runs: every few seconds, and where a service is gone.
 * packetbridge/core is the same in Python. */
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/pkt_cls.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "frame.h"
#include "link.h"
#include "packetbridge/backend.h"
#include "packetbridge/client.h"
#include "packetbridge/forget.h"
#include "packetbridge/icmp.h"
#include "packetbridge/intake.h"
#include "packetbridge/maps.h"
#include "packetbridge/passage.h"
#include "packetbridge/sweep.h"

/* What is looked at of every packet. */
struct look {
    struct iphdr ip;
    /* Source and destination, if it is TCP. */
    __be16 ports[2];
};

/* 0, or a negative error: then it is not for IPv4. */
static __always_inline int look_at(struct __sk_buff *skb, struct look *look)
{
    if (bpf_skb_load_bytes(skb, IP_AT, look, sizeof(*look)))
        return -1;
    if (look->ip.version != 4 || look->ip.ihl < IP_SIZE / 4)
        return -1;
    if (look->ip.ihl == IP_SIZE / 4)
        return 0;
    return bpf_skb_load_bytes(skb, IP_AT + look->ip.ihl * 4, look->ports, sizeof(look->ports));
}

static __always_inline int passage_begin(struct __sk_buff *skb, struct passage *p)
{
    p->scratch = scratch_of_cpu();
    if (!p->scratch)
        return FRAME_TRUNCATED;
    p->was = &p->scratch->was;
    p->is = &p->scratch->is;
    return frame_load(skb, p->was);
}

static __always_inline int tcp_from_balancer(struct __sk_buff *skb, const struct look *look)
{
    const struct iphdr *ip = &look->ip;
    struct passage p = {.service = service_of(ip->tos >> DSCP_SHIFT)};
    int is_ours = p.service && p.service->bridge == ip->daddr;
    int is_known = is_ours && p.service->vip_port == look->ports[1];
    int error;

    if (!is_known && !intake_has(ip->daddr, look->ports[1]))
        return TC_ACT_UNSPEC;
    error = passage_begin(skb, &p);
    if (error)
        return drop_unreadable(error);
    p.went_round = skb->mark == WENT_ROUND;
    if (p.went_round)
        skb->mark = 0;
    if (is_known)
        return from_client(skb, &p);
    if (!ip_checksum_holds(ip))
        return drop(COUNT_BAD_IP_CHECKSUM);
    return drop(is_ours ? COUNT_WRONG_PORT : COUNT_UNKNOWN_DSCP);
}

static __always_inline int tcp_from_backend(struct __sk_buff *skb, const struct look *look)
{
    const struct iphdr *ip = &look->ip;
    const struct endpoint backend = {.address = ip->saddr, .port = look->ports[0]};
    struct passage p = {};
    __u32 *vip_index;
    int error;

    if (ip->frag_off & bpf_htons(FRAGMENT_OFFSET_MASK))
        return intake_has_backend(ip->saddr) ? drop(COUNT_FRAGMENT) : TC_ACT_UNSPEC;
    vip_index = bpf_map_lookup_elem(&backends, &backend);
    if (!vip_index)
        return TC_ACT_UNSPEC;
    p.id = (struct flow_id){.client = ip->daddr, .client_port = look->ports[1], .vip_index = *vip_index};
    p.service = service_of(*vip_index);
    p.flow = bpf_map_lookup_elem(&flows, &p.id);
    if (!p.flow || !p.service)
        return TC_ACT_UNSPEC;
    error = passage_begin(skb, &p);
    return error ? drop_unreadable(error) : from_backend(skb, &p);
}

SEC("tc")
int ingress(struct __sk_buff *skb)
{
    struct look look;

    if (!link_is_ours(skb) || look_at(skb, &look))
        return TC_ACT_UNSPEC;
    if (look.ip.tos <= ECN_MASK || look.ip.frag_off & bpf_htons(FRAGMENT_OFFSET_MASK))
        return TC_ACT_UNSPEC;
    if (look.ip.protocol == IPPROTO_TCP)
        return tcp_from_balancer(skb, &look);
    return look.ip.protocol == IPPROTO_ICMP ? icmp_from_balancer(skb, &look.ip) : TC_ACT_UNSPEC;
}

SEC("tc")
int egress(struct __sk_buff *skb)
{
    struct look look;

    if (!link_carries_ipv4(skb) || look_at(skb, &look))
        return TC_ACT_UNSPEC;
    if (look.ip.protocol == IPPROTO_TCP)
        return tcp_from_backend(skb, &look);
    return look.ip.protocol == IPPROTO_ICMP ? icmp_from_backend(skb, &look.ip) : TC_ACT_UNSPEC;
}

SEC("syscall")
int sweep(void *context)
{
    (void)context;
    return sweep_flows();
}

SEC("syscall")
int forget_services(struct forgetting *context)
{
    struct forgetting asked = {.vip_indexes = context->vip_indexes};

    forget_all(&asked);
    context->flows = asked.flows;
    return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
