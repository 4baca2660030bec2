/* The balancer's tables, which Python shares, and what is fixed when the programs are loaded. */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "balancer_abi.h"

/* The daemon's TUN: what leaves there is read by Python, what enters there is routed by the kernel. */
const volatile __u32 tun_ifindex;
/* Connections that Python is given to decide on. */
const volatile __u32 claims_per_second;
const volatile __u32 resets_per_second;
/* How long a handshake is remembered whose client has said nothing yet. */
const volatile __u32 verified_seconds = 300;

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __uint(max_entries, MAX_SERVICES);
    __type(key, struct endpoint);
    __type(value, struct balancer_service);
} services SEC(".maps");

struct maglev_table {
    /* A node's address in each slot. */
    __be32 slots[MAGLEV_SIZE];
};

/* One table, as one value: so it is written at once. */
struct maglev {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __uint(key_size, sizeof(__u32));
    __uint(value_size, sizeof(struct maglev_table));
};

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
    __uint(max_entries, TABLES);
    __type(key, __u32);
    __array(values, struct maglev);
} tables SEC(".maps");

/* How loaded a node is, but for what it is handed. Python's. */
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __uint(max_entries, MAX_NODES);
    __type(key, struct node_id);
    __type(value, struct node_row);
} nodes SEC(".maps");

/* New flows that a node was handed. It begins with Python's row of the node. */
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __uint(max_entries, MAX_NODES);
    __type(key, struct node_id);
    __type(value, __u64);
} handed SEC(".maps");

/* The same of all nodes of a service that are bounded, by VIP index. */
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, MAX_SERVICES);
    __type(key, __u32);
    __type(value, struct service_load);
} loads SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, MAX_SERVICES);
    __type(key, __u32);
    __type(value, __u64);
} handed_total SEC(".maps");

/* By node address. */
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __uint(max_entries, MAX_NODES);
    __type(key, __be32);
    __type(value, struct route);
} routes SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __uint(max_entries, 1000000);
    __type(key, struct flow_id);
    __type(value, struct balancer_flow);
} flows SEC(".maps");

/* Handshakes whose client has said nothing yet. Where there is no room, the cookie has to do. Entries are
 * never evicted, here and below: what was offered to a client and is forgotten before it answers would be
 * lost to it. */
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 65536);
    __type(key, struct flow_id);
    __type(value, struct handshake);
} verified SEC(".maps");

/* What SYNs said, for what the cookie cannot carry. */
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 65536);
    __type(key, struct flow_id);
    __type(value, struct hello);
} half_open SEC(".maps");

/* Connections that Python decides on, and since when: it alone takes a claim back. */
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __uint(max_entries, 32768);
    __type(key, struct flow_id);
    __type(value, __u32);
} claims SEC(".maps");
