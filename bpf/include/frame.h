/* The headers of a TCP packet without IP options, taken out of the packet and put back.
 *
 * A program loads one frame, makes the wanted one of a copy, and commits: one store, and the TCP checksum by
 * difference (RFC 1624), so that a wrong one stays wrong, and one that is still to be computed stays so.
 * Frames on the stack begin as zeros: kernels before 6.3 pass nothing else to a function. */
#pragma once

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <linux/types.h>

#include "checksum.h"
#include "link.h"

#define IP_SIZE 20
#define TCP_SIZE 20
#define OPTIONS_SIZE 40
#define HEADERS_SIZE (IP_SIZE + TCP_SIZE + OPTIONS_SIZE)
#define IP_AT LINK
#define TCP_AT (LINK + IP_SIZE)
#define TCP_CHECK_AT (TCP_AT + __builtin_offsetof(struct tcphdr, check))

#define FRAGMENT_MASK 0x3fff
#define FRAGMENT_OFFSET_MASK 0x1fff
#define DONT_FRAGMENT 0x4000
#define FRESH_TTL 64
#define ECN_MASK 3
#define FLAGS_AT 13
#define TCP_SIZE_MASK 0x3c
/* With the timestamps of nearly every segment. */
#define USUAL_TCP_SIZE 32

enum flag {
    FLAG_FIN = 1,
    FLAG_SYN = 2,
    FLAG_RST = 4,
    FLAG_PSH = 8,
    FLAG_ACK = 16,
    FLAG_URG = 32,
};

/* In the order in which they are looked for. */
enum frame_error {
    FRAME_TRUNCATED = -1,
    FRAME_NOT_IPV4 = -2,
    FRAME_NOT_TCP = -3,
    FRAME_BAD_IP_CHECKSUM = -4,
    FRAME_FRAGMENT = -5,
    FRAME_IP_OPTIONS = -6,
    FRAME_BAD_DATA_OFFSET = -7,
};

struct frame {
    struct iphdr ip;
    struct tcphdr tcp;
    union {
        __u8 options[OPTIONS_SIZE];
        __be32 words[OPTIONS_SIZE / 4];
    };
    /* Of the TCP header with its options: 20 to 60, a multiple of 4. */
    __u32 tcp_size;
    /* Bytes; what a link adds behind the IP packet is none. */
    __u32 payload;
};
_Static_assert(__builtin_offsetof(struct frame, tcp) == IP_SIZE, "frame.tcp");
_Static_assert(__builtin_offsetof(struct frame, options) == IP_SIZE + TCP_SIZE, "frame.options");
_Static_assert(sizeof(struct frame) == HEADERS_SIZE + 8, "frame");

/* Eight bits, of enum flag and above. */
static __always_inline __u8 frame_flags(const struct frame *f)
{
    return ((const __u8 *)&f->tcp)[FLAGS_AT];
}

static __always_inline void frame_set_flags(struct frame *f, __u8 flags)
{
    ((__u8 *)&f->tcp)[FLAGS_AT] = flags;
}

/* Sets what depends on the sizes, in the IP header too. */
static __always_inline void frame_set_sizes(struct frame *f, __u32 tcp_size, __u32 payload)
{
    f->tcp_size = tcp_size;
    f->payload = payload;
    f->tcp.doff = tcp_size / 4;
    f->ip.tot_len = bpf_htons(IP_SIZE + tcp_size + payload);
}

/* Whether the checksum of a header without options is right. */
static __always_inline int ip_checksum_holds(const struct iphdr *ip)
{
    return sum_fold(sum_words(ip, IP_SIZE / 4)) == 0xffff;
}

/* is->check by difference: as right or wrong as was->check. */
static __always_inline void ip_update(const struct iphdr *was, struct iphdr *is)
{
    is->check = was->check;
    is->check = ~sum_fold((__u16)~was->check + sum_words_diff(was, is, IP_SIZE / 4));
}

/* The header of a packet of our own; addresses, TOS, protocol and length are the caller's. */
static __always_inline void ip_fresh(struct iphdr *ip)
{
    ip->version = 4;
    ip->ihl = IP_SIZE / 4;
    ip->id = 0;
    ip->frag_off = bpf_htons(DONT_FRAGMENT);
    ip->ttl = FRESH_TTL;
    ip->check = 0;
    ip->check = ~sum_fold(sum_words(ip, IP_SIZE / 4));
}

/* The same with options, which stand where the frame has TCP. */
static __always_inline int frame_ip_holds(const struct frame *f)
{
    const word32 *words = (const word32 *)f;
    __u64 sum = 0;

    for (int at = 0; at < 15; at++)
        if (at < f->ip.ihl)
            sum += words[at];
    return sum_fold(sum) == 0xffff;
}

/* 0, or a negative enum frame_error. The checksum of a header without options is verified only where there is
 * another error; where it is FRAME_NOT_TCP it is not. Then f->ip holds what was there. */
__noinline int frame_load(struct __sk_buff *skb, struct frame *f)
{
    __u64 held = (__u64)skb->len - LINK;
    __u32 total, tcp_size;

    if (!f)
        return FRAME_TRUNCATED;
    if (held > HEADERS_SIZE)
        held = HEADERS_SIZE;
    if (held < IP_SIZE || bpf_skb_load_bytes(skb, IP_AT, f, held))
        return FRAME_TRUNCATED;
    if (f->ip.version != 4 || f->ip.ihl < IP_SIZE / 4)
        return FRAME_NOT_IPV4;
    total = bpf_ntohs(f->ip.tot_len);
    if (total < f->ip.ihl * 4 || total > skb->len - LINK)
        return FRAME_TRUNCATED;
    if (f->ip.protocol != IPPROTO_TCP)
        return FRAME_NOT_TCP;
    if (f->ip.frag_off & bpf_htons(FRAGMENT_MASK))
        return frame_ip_holds(f) ? FRAME_FRAGMENT : FRAME_BAD_IP_CHECKSUM;
    if (f->ip.ihl != IP_SIZE / 4)
        return frame_ip_holds(f) ? FRAME_IP_OPTIONS : FRAME_BAD_IP_CHECKSUM;
    if (total < IP_SIZE + TCP_SIZE)
        return ip_checksum_holds(&f->ip) ? FRAME_TRUNCATED : FRAME_BAD_IP_CHECKSUM;
    tcp_size = f->tcp.doff * 4;
    if (tcp_size < TCP_SIZE || tcp_size > total - IP_SIZE)
        return ip_checksum_holds(&f->ip) ? FRAME_BAD_DATA_OFFSET : FRAME_BAD_IP_CHECKSUM;
    f->tcp_size = tcp_size;
    f->payload = total - IP_SIZE - tcp_size;
    return 0;
}

/* Makes room for an IP packet of ip_total bytes; what is new at the end is zero. Not for superpackets.
 * 0, or a negative error. */
static __always_inline int frame_resize(struct __sk_buff *skb, __u32 ip_total)
{
    return bpf_skb_change_tail(skb, LINK + ip_total, 0);
}

/* How much more the TCP pseudo-header sums to: addresses and TCP length, as a __wsum. */
static __always_inline __u32 frame_pseudo_diff(const struct frame *was, const struct frame *is)
{
    __u64 sum = sum_words_diff(&was->ip.saddr, &is->ip.saddr, 2);

    sum += bpf_htons(is->tcp_size + is->payload);
    sum += (__u16)~bpf_htons(was->tcp_size + was->payload);
    return sum_fold32(sum);
}

/* The same of TCP header, payload_diff included. What nearly all segments have spares a call. */
static __always_inline __u32 frame_data_diff(struct frame *was, struct frame *is, __u32 payload_diff)
{
    __u64 sum = payload_diff;

    if (was->tcp_size != is->tcp_size || (is->tcp_size != TCP_SIZE && is->tcp_size != USUAL_TCP_SIZE))
        return bpf_csum_diff((__be32 *)&was->tcp, was->tcp_size & TCP_SIZE_MASK, (__be32 *)&is->tcp,
                             is->tcp_size & TCP_SIZE_MASK, payload_diff);
    sum += sum_words_diff(&was->tcp, &is->tcp, TCP_SIZE / 4);
    if (is->tcp_size == USUAL_TCP_SIZE)
        sum += sum_words_diff(was->options, is->options, (USUAL_TCP_SIZE - TCP_SIZE) / 4);
    return sum_fold32(sum);
}

/* Puts `is` into the packet that `was` was loaded from: the IP header as it is given, with its checksum, and
 * the TCP header, whose checksum field counts in neither frame. payload_diff is how much more the payload
 * sums to (skb_sum; ~sum for what was taken away), 0 where it is the same. Where sizes differ, the packet has
 * been resized before. 0, or a negative error: then the packet is to be dropped. */
__noinline int frame_commit(struct __sk_buff *skb, struct frame *was, struct frame *is, __u32 payload_diff)
{
    __u32 pseudo, data;

    if (!was || !is)
        return -1;
    is->tcp.check = was->tcp.check;
    pseudo = frame_pseudo_diff(was, is);
    data = frame_data_diff(was, is, payload_diff);
    if (bpf_skb_store_bytes(skb, IP_AT, is, IP_SIZE + (is->tcp_size & TCP_SIZE_MASK), 0))
        return -1;
    if (bpf_l4_csum_replace(skb, TCP_CHECK_AT, 0, pseudo, BPF_F_PSEUDO_HDR))
        return -1;
    return bpf_l4_csum_replace(skb, TCP_CHECK_AT, 0, data, 0);
}

/* frame_commit where only the IP header differs, and its length does not. */
__noinline int frame_commit_ip(struct __sk_buff *skb, struct frame *was, struct frame *is)
{
    if (!was || !is)
        return -1;
    if (bpf_skb_store_bytes(skb, IP_AT, &is->ip, IP_SIZE, 0))
        return -1;
    return bpf_l4_csum_replace(skb, TCP_CHECK_AT, 0, frame_pseudo_diff(was, is), BPF_F_PSEUDO_HDR);
}

/* Of the pseudo-header's words (RFC 9293 section 3.1). */
static __always_inline __u64 pseudo_sum(const struct frame *f)
{
    return sum_words(&f->ip.saddr, 2) + bpf_htons(IPPROTO_TCP) + bpf_htons(f->tcp_size + f->payload);
}

/* What pseudo-header and TCP header sum to, the checksum field with them: the payload's sum with its sign
 * changed, if the checksum is complete and right. So, as payload_diff of a commit, it takes the payload away. */
static __always_inline __u32 headers_sum(struct frame *f)
{
    return bpf_csum_diff(NULL, 0, (__be32 *)&f->tcp, f->tcp_size & TCP_SIZE_MASK, sum_fold32(pseudo_sum(f)));
}

/* Whether the TCP checksum of the packet that f was loaded from is right, or still to be computed by the
 * kernel: then the field holds the sum of the pseudo-header, and superpackets are never otherwise. */
__noinline int tcp_checksum_holds(struct __sk_buff *skb, struct frame *f)
{
    __u64 pseudo;
    __u32 sum = 0;

    if (!f)
        return 0;
    pseudo = pseudo_sum(f);
    if (skb->gso_size || f->tcp.check == sum_fold(pseudo))
        return 1;
    if (skb_sum(skb, TCP_AT, f->tcp_size + f->payload, &sum))
        return 0;
    return sum_fold(pseudo + sum) == 0xffff;
}
