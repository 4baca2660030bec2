/* The time, by the clock that common/bpf/abi.py names, and the wall clock that Python derives from it. */
#pragma once

#include <bpf/bpf_helpers.h>
#include <linux/bpf.h>
#include <linux/types.h>

#include "abi.h"

#define NS_PER_SECOND 1000000000ULL
#define NS_PER_MILLISECOND 1000000ULL

/* A time that stands still, for tests; 0 is the real clock. */
const volatile __u64 fixed_now_ns = 0;

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct clock);
} clock SEC(".maps");

static __always_inline __u64 now_ns(void)
{
    return fixed_now_ns ? fixed_now_ns : bpf_ktime_get_ns();
}

static __always_inline __u32 now_seconds(void)
{
    return now_ns() / NS_PER_SECOND;
}

/* Modulo 2^32. */
static __always_inline __u32 now_milliseconds(void)
{
    return now_ns() / NS_PER_MILLISECOND;
}

/* Seconds since 1970, modulo 2^32. */
static __always_inline __u32 wall_seconds(void)
{
    __u32 first = 0;
    struct clock *wall = bpf_map_lookup_elem(&clock, &first);

    return (now_ns() + (wall ? wall->wall_offset_ns : 0)) / NS_PER_SECOND;
}
