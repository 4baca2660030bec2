/* Segments that the node makes itself, and packets turned into them (packetbridge/core/opening.py).
 *
 * A program cannot make a packet. So one that has come is turned into the one to send: its sizes, headers and
 * payload are replaced, and where two are to be sent it is cloned in between. */
#pragma once

#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "checksum.h"
#include "flow_key.h"
#include "frame.h"
#include "packetbridge/passage.h"
#include "tcp_options.h"

/* A segment without options and payload, DF set, TOS 0; `segment_end` completes it. Numbers are in host byte
 * order. */
static __always_inline void segment_begin(struct frame *f, const struct flow_key *key, __u32 seq, __u32 ack,
                                          __u8 flags, __u16 window)
{
    f->ip = (struct iphdr){.protocol = IPPROTO_TCP, .saddr = key->source, .daddr = key->destination};
    f->tcp = (struct tcphdr){
        .source = key->source_port,
        .dest = key->destination_port,
        .seq = bpf_htonl(seq),
        .ack_seq = bpf_htonl(ack),
        .window = bpf_htons(window),
    };
    frame_set_flags(f, flags);
}

static __always_inline void segment_end(struct frame *f, __u32 options_size, __u32 payload)
{
    frame_set_sizes(f, TCP_SIZE + options_size, payload);
    ip_fresh(&f->ip);
}

/* Gives a header of our own identification and fragment word of another's. */
static __always_inline void ip_identify(struct iphdr *ip, __be16 identification, __be16 fragment)
{
    ip->id = identification;
    ip->frag_off = fragment;
    ip->check = 0;
    ip->check = ~sum_fold(sum_words(ip, IP_SIZE / 4));
}

/* From the client to the backend. */
static __noinline void backend_segment(struct passage *p, __u32 seq, __u32 ack, __u8 flags, __u16 window)
{
    const struct flow_key key = {
        .source = p->id.client,
        .destination = p->service->backend,
        .source_port = p->id.client_port,
        .destination_port = p->service->backend_port,
    };

    segment_begin(p->is, &key, seq, ack, flags, window);
}

/* From the VIP to the client. */
static __noinline void client_segment(struct passage *p, __u32 seq, __u32 ack, __u8 flags)
{
    const struct flow_key key = {
        .source = p->service->vip,
        .destination = p->id.client,
        .source_port = p->service->vip_port,
        .destination_port = p->id.client_port,
    };

    segment_begin(p->is, &key, seq, ack, flags, 0);
    segment_end(p->is, 0, 0);
}

/* The client's SYN, as it would have asked the backend. */
static __noinline void make_syn(struct passage *p, const struct stash_head *begun, __u32 client_isn)
{
    struct said said = {
        .value = begun->value,
        .mss = begun->mss,
        .window_scale = begun->window_scale,
        .options = begun->options,
    };

    backend_segment(p, client_isn, 0, FLAG_SYN, begun->window);
    segment_end(p->is, options_emit_syn(p->is, &said), 0);
}

/* What a client in SYN-SENT answers to a segment of an older connection (RFC 9293 section 3.10.7.3). */
static __noinline void make_reset_for_backend(struct passage *p)
{
    const struct frame *was = p->was;
    __u8 flags = frame_flags(was);
    __u32 length = was->payload + !!(flags & FLAG_SYN) + !!(flags & FLAG_FIN);

    if (flags & FLAG_ACK)
        backend_segment(p, bpf_ntohl(was->tcp.ack_seq), 0, FLAG_RST, 0);
    else
        backend_segment(p, 0, bpf_ntohl(was->tcp.seq) + length, FLAG_RST | FLAG_ACK, 0);
    segment_end(p->is, 0, 0);
}

/* The RST that tells the client that nobody serves it. */
static __always_inline void make_refusal(struct passage *p)
{
    client_segment(p, p->flow->balancer_isn + 1, p->flow->client_isn + 1, FLAG_RST | FLAG_ACK);
}

/* bpf_skb_change_tail takes what it cuts off out of a sum over the whole packet, if the link's card has made
 * one. The commit that follows keeps that sum as it was before. 0, or a negative error. */
static __always_inline int cut(struct __sk_buff *skb, __u32 ip_total)
{
    __u32 kept = LINK + ip_total, sum = 0;

    if (kept < skb->len && !skb->gso_size)
        skb_sum(skb, kept, skb->len - kept, &sum);
    if (frame_resize(skb, ip_total))
        return -1;
    bpf_csum_update(skb, sum);
    return 0;
}

/* Makes the packet the segment `is`, except for the payload, which the caller stores. payload_diff is how
 * much more it sums to than that of `was`. 0, or a negative error: then the packet is to be dropped. */
__attribute__((noinline)) int packet_become(struct __sk_buff *skb, struct frame *was, struct frame *is,
                                            __u32 payload_diff)
{
    if (!was || !is)
        return -1;
    if (cut(skb, IP_SIZE + is->tcp_size + is->payload))
        return -1;
    return frame_commit(skb, was, is, payload_diff);
}

/* Makes the packet `p->is`, which has no payload and a right checksum, whatever was wrong with `p->was`.
 * Returns the verdict. */
static __noinline int become(struct __sk_buff *skb, struct passage *p, int verdict)
{
    return packet_become(skb, p->was, p->is, headers_sum(p->was)) ? drop(COUNT_UNWRITTEN) : verdict;
}

/* The same for one of two segments that the packet becomes one after the other: a clone of it goes to the
 * local stack. `p->was` is then what the clone was. 0, or a negative error: then the packet is to be
 * dropped. */
static __noinline int send_clone_to_stack(struct __sk_buff *skb, struct passage *p)
{
    if (packet_become(skb, p->was, p->is, headers_sum(p->was)))
        return -1;
    bpf_clone_redirect(skb, skb->ifindex, BPF_F_INGRESS);
    *p->was = *p->is;
    return bpf_skb_load_bytes(skb, TCP_CHECK_AT, &p->was->tcp.check, sizeof(p->was->tcp.check));
}
