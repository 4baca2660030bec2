/* ICMP errors (RFC 792). The packet that one quotes is cut, so only its IP header and the first 8 bytes of TCP,
 * ports and sequence number, are relied on. */
#pragma once

#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "frame.h"

enum icmp_type {
    ICMP_UNREACHABLE = 3,
    ICMP_TIME_EXCEEDED = 11,
    ICMP_PARAMETER_PROBLEM = 12,
};

/* An ICMP error, as far as it can be relied on. */
struct icmp_error {
    __u8 type;
    __u8 code;
    __be16 check;
    __be32 rest;
    struct iphdr ip;
    __be16 source_port;
    __be16 destination_port;
    __be32 seq;
};
_Static_assert(sizeof(struct icmp_error) == 36, "icmp_error");

/* Up to the quoted source port: what the tap's filter reads. */
#define ICMP_ERROR_LOOK 30

/* How much of the error behind the IP header is there, at most all of it; 0 where it cannot be read. */
static __always_inline __u32 icmp_load(struct __sk_buff *skb, const struct iphdr *ip,
                                       struct icmp_error *error)
{
    __u32 at = LINK + ip->ihl * 4;
    __u64 held = (__u64)skb->len - at;

    if (at > skb->len)
        return 0;
    if (held > sizeof(*error))
        held = sizeof(*error);
    if (held < ICMP_ERROR_LOOK || bpf_skb_load_bytes(skb, at, error, held))
        return 0;
    return held;
}

static __always_inline int icmp_is_error(const struct icmp_error *error)
{
    __u8 type = error->type;

    return type == ICMP_UNREACHABLE || type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETER_PROBLEM;
}

/* Whether it quotes TCP without IP options that is no later fragment. */
static __always_inline int icmp_quotes_tcp(const struct icmp_error *error)
{
    return error->ip.version == 4 && error->ip.ihl == IP_SIZE / 4 && error->ip.protocol == IPPROTO_TCP &&
           !(error->ip.frag_off & bpf_htons(FRAGMENT_OFFSET_MASK));
}
