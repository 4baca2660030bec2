/* A segment that has come, and what it was recognised as. */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "balancer/maps.h"
#include "balancer_abi.h"
#include "clock.h"
#include "flow_key.h"
#include "frame.h"
#include "handoff.h"
#include "seq.h"
#include "tcp_options.h"

struct arrival {
    struct frame frame;
    /* What is sent in its place. */
    struct frame made;
    struct balancer_service service;
    struct flow_id id;
    /* The one that it belongs to, or proves. */
    struct handshake handshake;
    /* These are in the making. */
    struct balancer_flow flow;
    struct handoff handoff;
    struct said said;
    /* Of the segment, in host byte order. */
    __u32 seq;
    __u32 ack;
    __u32 now;
    __u8 flags;
    __u8 state;
    __u8 event;
    /* What the choice of its node came to: enum choice. */
    __u8 choice;
    /* The payload of a handoff while its packet changes its size. */
    __u8 payload[HANDOFF_MAX_PAYLOAD];
};

/* The one that this CPU works on. Global functions ask for it themselves: kernels before 6.3 take no key
 * or value of a map from memory that was passed to one. */
struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct arrival);
} arrivals SEC(".maps");

static __always_inline struct arrival *arrival_here(void)
{
    __u32 first = 0;

    return bpf_map_lookup_elem(&arrivals, &first);
}

/* Sequence number of the client's first byte. */
static __always_inline __u32 first_byte(const struct handshake *h)
{
    return h->client_isn + 1;
}

/* What the client acknowledges until somebody has answered it. */
static __always_inline __u32 acknowledged(const struct handshake *h)
{
    return h->isn + 1;
}

/* Bytes that a client may send before a node answers: ten segments. */
static __always_inline __u32 preamble_window(const struct balancer_service *service)
{
    return 10 * service->max_payload;
}

static __always_inline struct flow_key key_of(const struct arrival *a)
{
    return (struct flow_key){
        .source = a->frame.ip.saddr,
        .destination = a->frame.ip.daddr,
        .source_port = a->frame.tcp.source,
        .destination_port = a->frame.tcp.dest,
    };
}

static __always_inline struct balancer_service *service_at(__be32 address, __be16 port)
{
    struct endpoint vip = {.address = address, .port = port};

    return bpf_map_lookup_elem(&services, &vip);
}

static __always_inline struct balancer_flow *flow_of(const struct arrival *a)
{
    return bpf_map_lookup_elem(&flows, &a->id);
}

/* Of whose SYN something is remembered that may still matter. */
static __always_inline struct hello *hello_of(const struct arrival *a)
{
    struct hello *hello = bpf_map_lookup_elem(&half_open, &a->id);

    return hello && seq_distance(hello->since, a->now) < COOKIE_LIFETIME ? hello : NULL;
}

static __always_inline struct handshake *verified_of(const struct arrival *a)
{
    struct handshake *known = bpf_map_lookup_elem(&verified, &a->id);

    return known && seq_distance(known->since, a->now) < (__s32)verified_seconds ? known : NULL;
}

/* The handshake is complete, and remembered elsewhere. */
static __always_inline void forget_hello(const struct arrival *a)
{
    struct hello *hello = bpf_map_lookup_elem(&half_open, &a->id);

    if (hello && hello->client_isn == a->handshake.client_isn)
        bpf_map_delete_elem(&half_open, &a->id);
}
