/* The balancer's data plane (docs/design.md sections 3 and 6): what the core in balancer/core does, for
 * all but the connections that it leaves to it.
 *
 * ingress, at tc of every interface: packets for a VIP are answered, handed off, forwarded, dropped, or
 * passed up to Python through the daemon's TUN. What is not for a VIP goes on to the next program and the
 * stack.
 * sweep, run by the daemon now and then: forgets what is too old. */
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/pkt_cls.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "balancer/answer.h"
#include "balancer/arrival.h"
#include "balancer/claim.h"
#include "balancer/classify.h"
#include "balancer/established.h"
#include "balancer/first_payload.h"
#include "balancer/forget.h"
#include "balancer/greet.h"
#include "balancer/handover.h"
#include "balancer/icmp.h"
#include "balancer/mark.h"
#include "balancer/sweep.h"
#include "link.h"

/* Counts a frame_error; of another version or protocol is no packet that comes here. A verdict. */
static __always_inline int dropped(int error)
{
    switch (error) {
    case FRAME_TRUNCATED:
        count(COUNT_DROPPED_TRUNCATED);
        break;
    case FRAME_BAD_IP_CHECKSUM:
        count(COUNT_DROPPED_BAD_IP_CHECKSUM);
        break;
    case FRAME_FRAGMENT:
        count(COUNT_DROPPED_FRAGMENT);
        break;
    case FRAME_IP_OPTIONS:
        count(COUNT_DROPPED_IP_OPTIONS);
        break;
    default:
        count(COUNT_DROPPED_BAD_DATA_OFFSET);
    }
    return TC_ACT_SHOT;
}

static __always_inline int contest(struct __sk_buff *skb, struct arrival *a)
{
    struct balancer_flow *flow = flow_of(a);

    if (flow)
        flow->contested_until = a->now + CONTESTED_SECONDS;
    return answer_syn(skb);
}

static __always_inline int hand_off_again(struct __sk_buff *skb, struct arrival *a)
{
    struct balancer_flow *flow = flow_of(a);
    int verdict;

    if (!flow)
        return TC_ACT_SHOT;
    if (fits_handoff(skb, a)) {
        count(COUNT_HAND_OFF_AGAIN);
        return hand_off(skb, flow);
    }
    verdict = claim(a);
    return verdict == NOT_CLAIMED ? TC_ACT_SHOT : verdict;
}

/* Carries out the rule of the machine. A verdict. */
static __always_inline int act(struct __sk_buff *skb, struct arrival *a)
{
    struct balancer_flow *flow;

    if (a->state > STATE_ANSWERED || a->event > EVENT_TIMEOUT)
        return TC_ACT_SHOT;
    switch (rules[a->state][a->event]) {
    case ACTION_ANSWER_SYN:
        count(COUNT_ANSWER_SYN);
        return answer_syn(skb);
    case ACTION_CONTEST:
        count(COUNT_CONTEST);
        return contest(skb, a);
    case ACTION_REMEMBER:
        count(COUNT_REMEMBER);
        remember(a);
        return TC_ACT_SHOT;
    case ACTION_ANSWER_PROBE:
        count(COUNT_ANSWER_PROBE);
        return acknowledge_nothing(skb);
    case ACTION_COLLECT:
    case ACTION_CLOSE:
    case ACTION_START_OVER:
        return collect(skb);
    case ACTION_FORGET:
        count(COUNT_FORGET);
        bpf_map_delete_elem(&verified, &a->id);
        return TC_ACT_SHOT;
    case ACTION_RESET:
        count(COUNT_RESET);
        return send_reset(skb);
    case ACTION_HAND_OFF_AGAIN:
        return hand_off_again(skb, a);
    case ACTION_FORWARD:
        flow = flow_of(a);
        return flow ? forward(skb, flow) : TC_ACT_SHOT;
    default:
        count(COUNT_IGNORE);
        return TC_ACT_SHOT;
    }
}

/* A segment to a service that is not ordinary data of a flow. A verdict. */
static __always_inline int receive_segment(struct __sk_buff *skb, const struct balancer_service *service)
{
    struct arrival *a = arrival_here();
    int error;

    if (!a)
        return TC_ACT_SHOT;
    error = frame_load(skb, &a->frame);
    if (error)
        return dropped(error);
    if (!ip_checksum_holds(&a->frame.ip))
        return dropped(FRAME_BAD_IP_CHECKSUM);
    a->flags = frame_flags(&a->frame);
    if (has_bad_flags(a->flags)) {
        count(COUNT_DROPPED_BAD_FLAGS);
        return TC_ACT_SHOT;
    }
    a->service = *service;
    a->id = (struct flow_id){
        .client = a->frame.ip.saddr,
        .client_port = a->frame.tcp.source,
        .vip_index = service->vip_index,
    };
    if (is_claimed(a))
        return pass_up();
    a->seq = bpf_ntohl(a->frame.tcp.seq);
    a->ack = bpf_ntohl(a->frame.tcp.ack_seq);
    a->now = now_seconds();
    classify();
    return act(skb, a);
}

/* Whatever is not ordinary data of a flow, ours or not: the choice of common/net/intake.py. A verdict. */
static __always_inline int receive(struct __sk_buff *skb)
{
    struct balancer_service *service;
    struct iphdr ip;
    __be16 ports[2];

    if (bpf_skb_load_bytes(skb, IP_AT, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < IP_SIZE / 4)
        return TC_ACT_UNSPEC;
    if (ip.frag_off & bpf_htons(FRAGMENT_OFFSET_MASK))
        return TC_ACT_UNSPEC;
    if (ip.protocol == IPPROTO_ICMP)
        return receive_icmp(skb);
    if (ip.protocol != IPPROTO_TCP || bpf_skb_load_bytes(skb, IP_AT + ip.ihl * 4, ports, sizeof(ports)))
        return TC_ACT_UNSPEC;
    service = service_at(ip.daddr, ports[1]);
    return service ? receive_segment(skb, service) : TC_ACT_UNSPEC;
}

SEC("tc")
int ingress(struct __sk_buff *skb)
{
    int verdict;

    if (!link_is_ours(skb))
        return TC_ACT_UNSPEC;
    verdict = forward_plain(skb);
    return verdict == NOT_PLAIN ? receive(skb) : verdict;
}

SEC("syscall")
int sweep(void *context)
{
    (void)context;
    sweep_all();
    return 0;
}

SEC("syscall")
int mark_routes(void *context)
{
    (void)context;
    mark_all();
    return 0;
}

SEC("syscall")
int forget_services(struct forgetting *context)
{
    struct forgetting asked = {.vip_indexes = context->vip_indexes};

    forget_all(&asked);
    context->flows = asked.flows;
    return 0;
}

char _license[] SEC("license") = "Dual MIT/GPL";
