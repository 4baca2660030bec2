/* The packetbridge's maps, and what is fixed when its programs are loaded. */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "frame.h"
#include "packetbridge/admission.h"
#include "packetbridge_abi.h"

/* Of the TUN by which Python is given packets, and by which the kernel routes those of our own to clients. */
const volatile __u32 tun_ifindex = 0;
/* RSTs in answer to handoffs of connections that have ended. */
const volatile __u32 resets_per_second = 1000;
/* Segments of unknown flows that Python is given. */
const volatile __u32 strangers_per_second = 10000;

/* Elements of map `limits`. */
enum limit {
    LIMIT_RESETS = 0,
    LIMIT_STRANGERS = 1,
};

struct stash {
    struct stash_head head;
    __u8 payload[STASH_PAYLOAD];
};
_Static_assert(sizeof(struct stash) == sizeof(struct stash_head) + STASH_PAYLOAD, "stash");

/* Hides from the compiler where a number comes from, so that the verifier sees it compared and used alike. */
#define OPAQUE(number) asm volatile("" : "+r"(number))
/* What stands before it is read and written first, as far as the compiler goes. */
#define COMPILER_BARRIER() asm volatile("" ::: "memory")

/* A payload's size for a helper: *bounded is 1 to STASH_PAYLOAD, as the verifier of any kernel sees. 0, or -1
 * where the size is not. */
static __always_inline int bound_size(__u32 size, __u64 *bounded)
{
    __u64 rest = (__u64)size - 1;

    OPAQUE(rest);
    if (rest >= STASH_PAYLOAD)
        return -1;
    OPAQUE(rest);
    *bounded = rest + 1;
    return 0;
}

/* What one packet needs beyond the stack, which belongs to nobody between two packets. */
struct scratch {
    /* The packet's headers as it came, and as it is to be. */
    struct frame was;
    struct frame is;
    struct admitted admitted;
    struct bridge_flow flow;
    struct stash stash;
};

/* By VIP index. */
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, MAX_SERVICES);
    __type(key, __u32);
    __type(value, struct bridge_service);
} services SEC(".maps");

/* VIP index by the backend's address and port. */
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, MAX_SERVICES);
    __type(key, struct endpoint);
    __type(value, __u32);
} backends SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __uint(max_entries, 100000);
    __type(key, struct flow_id);
    __type(value, struct bridge_flow);
} flows SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __uint(max_entries, 8192);
    __type(key, struct flow_id);
    __type(value, struct stash);
} stash SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_LRU_HASH);
    __uint(max_entries, 65536);
    __type(key, struct tombstone_id);
    __type(value, __u32);
} tombstones SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(map_flags, BPF_F_NO_PREALLOC);
    __uint(max_entries, 4096);
    __type(key, struct flow_id);
    __type(value, __u32);
} questions SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct sweep_result);
} sweep_result SEC(".maps");

/* By VIP index. */
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, MAX_SERVICES);
    __type(key, __u32);
    __type(value, struct open_flows);
} open_flows SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct scratch);
} scratch SEC(".maps");

static __always_inline struct scratch *scratch_of_cpu(void)
{
    __u32 first = 0;

    return bpf_map_lookup_elem(&scratch, &first);
}
