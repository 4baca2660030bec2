/* XXH64, the hash of request keys and of flows, the same as common/hashing/xxh64.py. */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "flow_key.h"
#include "room.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "lanes are read as they lie in memory on little-endian machines only"
#endif

#define XXH64_STRIPE 32

#define XXH64_P1 0x9e3779b185ebca87ULL
#define XXH64_P2 0xc2b2ae3d27d4eb4fULL
#define XXH64_P3 0x165667b19e3779f9ULL
#define XXH64_P4 0x85ebca77c2b2ae63ULL
#define XXH64_P5 0x27d4eb2f165667c5ULL

typedef __u32 __attribute__((may_alias)) xxh64_half;
typedef __u64 __attribute__((may_alias)) xxh64_lane;

struct xxh64_stripes {
    struct room *room;
    __u64 at;
    __u64 lanes[4];
};

static __always_inline __u64 xxh64_rotated(__u64 word, __u32 bits)
{
    return word << bits | word >> (64 - bits);
}

static __always_inline __u64 xxh64_round(__u64 lane, __u64 word)
{
    return xxh64_rotated(lane + word * XXH64_P2, 31) * XXH64_P1;
}

static __always_inline __u64 xxh64_merge(__u64 hash, __u64 lane)
{
    return (hash ^ xxh64_round(0, lane)) * XXH64_P1 + XXH64_P4;
}

static __always_inline __u64 xxh64_take8(__u64 hash, __u64 word)
{
    return xxh64_rotated(hash ^ xxh64_round(0, word), 27) * XXH64_P1 + XXH64_P4;
}

static __always_inline __u64 xxh64_take4(__u64 hash, __u32 word)
{
    return xxh64_rotated(hash ^ word * XXH64_P1, 23) * XXH64_P2 + XXH64_P3;
}

static __always_inline __u64 xxh64_take1(__u64 hash, __u8 byte)
{
    return xxh64_rotated(hash ^ byte * XXH64_P5, 11) * XXH64_P1;
}

static __always_inline __u64 xxh64_mixed(__u64 hash)
{
    hash = (hash ^ hash >> 33) * XXH64_P2;
    hash = (hash ^ hash >> 29) * XXH64_P3;
    return hash ^ hash >> 32;
}

static long xxh64_stripe(__u32 index, struct xxh64_stripes *stripes)
{
    const __u8 *stripe = room_at(stripes->room, stripes->at + index * XXH64_STRIPE);

#pragma unroll
    for (int i = 0; i < 4; i++)
        stripes->lanes[i] = xxh64_round(stripes->lanes[i], *(const xxh64_lane *)(stripe + 8 * i));
    return 0;
}

static __always_inline __u64 xxh64_of_stripes(struct room *room, __u32 at, __u32 count, __u64 seed)
{
    struct xxh64_stripes s = {
        .room = room,
        .at = at,
        .lanes = {seed + XXH64_P1 + XXH64_P2, seed + XXH64_P2, seed, seed - XXH64_P1},
    };
    __u64 hash;

    bpf_loop(count, xxh64_stripe, &s, 0);
    hash = xxh64_rotated(s.lanes[0], 1) + xxh64_rotated(s.lanes[1], 7) + xxh64_rotated(s.lanes[2], 12) +
           xxh64_rotated(s.lanes[3], 18);
#pragma unroll
    for (int i = 0; i < 4; i++)
        hash = xxh64_merge(hash, s.lanes[i]);
    return hash;
}

/* The digest of `size` bytes from `at` on. */
static __always_inline __u64 xxh64(struct room *room, __u32 at, __u32 size, __u64 seed)
{
    __u64 hash = seed + XXH64_P5;
    __u32 end = at + size;

    if (size >= XXH64_STRIPE) {
        hash = xxh64_of_stripes(room, at, size / XXH64_STRIPE, seed);
        at += size / XXH64_STRIPE * XXH64_STRIPE;
    }
    hash += size;
#pragma unroll
    for (int i = 0; i < 3; i++) {
        if (end - at >= 8) {
            hash = xxh64_take8(hash, *(const xxh64_lane *)room_at(room, at));
            at += 8;
        }
    }
    if (end - at >= 4) {
        hash = xxh64_take4(hash, *(const xxh64_half *)room_at(room, at));
        at += 4;
    }
#pragma unroll
    for (int i = 0; i < 3; i++) {
        if (at != end)
            hash = xxh64_take1(hash, *room_at(room, at++));
    }
    return xxh64_mixed(hash);
}

/* The digest of the 8 bytes of a word. */
static __always_inline __u64 xxh64_word(__u64 word, __u64 seed)
{
    return xxh64_mixed(xxh64_take8(seed + XXH64_P5 + sizeof(word), word));
}

/* The digest of the 12 bytes of a flow key. */
static __always_inline __u64 xxh64_flow_key(const struct flow_key *key, __u64 seed)
{
    __u64 addresses = key->source | (__u64)key->destination << 32;
    __u32 ports = key->source_port | (__u32)key->destination_port << 16;
    __u64 hash = seed + XXH64_P5 + sizeof(*key);

    return xxh64_mixed(xxh64_take4(xxh64_take8(hash, addresses), ports));
}
