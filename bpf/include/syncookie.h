/* SYN cookies: a handshake that needs no memory (RFC 4987 section 3.6).
 *
 * The ISN of the SYN-ACK:
 *
 *     |  period (5)  | MSS class (3) |          keyed hash (24)         |
 *
 * The period counts COOKIE_PERIOD seconds modulo 32. The hash covers the flow key (client to VIP), the
 * client's ISN, the full period and the MSS class. What else the SYN said rides in the low six bits of TSval,
 * which the client echoes:
 *
 *     |                 TSval clock (26)          | 0 | SACK (1) | window scale (4), NO_SCALE: none | */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "balancer_abi.h"
#include "flow_key.h"
#include "siphash.h"

#define COOKIE_PERIODS 32
#define COOKIE_STAMP_MASK 0x3f
#define COOKIE_STAMP_SACK 0x10
#define COOKIE_STAMP_SCALE 0x0f
#define COOKIE_CLASSES 8
#define COOKIE_HASHED 21

const volatile __u64 cookie_key_low;
const volatile __u64 cookie_key_high;

union cookie_message {
    struct {
        struct flow_key key;
        __be32 client_isn;
        __be32 period;
        __u8 mss_class;
        __u8 zero[3];
    };
    __u64 words[SIPHASH_WORDS(COOKIE_HASHED)];
};
_Static_assert(sizeof(union cookie_message) == 24, "cookie_message");

static __noinline __u32 cookie_isn(const struct flow_key *key, __u32 client_isn, __u32 mss_class,
                                   __u32 period)
{
    const struct siphash_key secret = {.low = cookie_key_low, .high = cookie_key_high};
    union cookie_message message = {
        .key = *key,
        .client_isn = bpf_htonl(client_isn),
        .period = bpf_htonl(period),
        .mss_class = mss_class,
    };
    __u64 digest = siphash24(&secret, message.words, COOKIE_HASHED);

    return period % COOKIE_PERIODS << 27 | mss_class << 24 | bpf_ntohl((__u32)digest) >> 8;
}

/* The ISN for a SYN of the client in `period`, which is not reduced. `mss` counts as the largest class that
 * is not above it, or as the smallest. */
static __always_inline __u32 cookie_make(const struct flow_key *key, __u32 client_isn, __u32 mss,
                                         __u32 period)
{
    __u32 mss_class = 0;

#pragma unroll
    for (int i = 1; i < COOKIE_CLASSES; i++)
        mss_class += mss >= mss_classes[i];
    return cookie_isn(key, client_isn, mss_class, period);
}

/* The client's MSS, rounded down to its class; -1 if `isn` is no cookie of ours, or too old. */
static __always_inline int cookie_check(const struct flow_key *key, __u32 client_isn, __u32 isn, __u32 period)
{
    __u32 age = (period - (isn >> 27)) % COOKIE_PERIODS;
    __u32 mss_class = isn >> 24 & (COOKIE_CLASSES - 1);

    if (age > COOKIE_MAX_AGE || cookie_isn(key, client_isn, mss_class, period - age) != isn)
        return -1;
    return mss_classes[mss_class];
}

/* The newest TSval not after `ticks` (milliseconds modulo 2^32) that carries what a SYN offered: its window
 * scale or NO_SCALE, and OPTION_SACK of `options`. */
static __always_inline __u32 cookie_stamp(__u32 ticks, __u8 window_scale, __u8 options)
{
    __u32 bits = (window_scale & COOKIE_STAMP_SCALE) | (options & OPTION_SACK ? COOKIE_STAMP_SACK : 0);
    __u32 value = (ticks & ~COOKIE_STAMP_MASK) | bits;

    return bits > (ticks & COOKIE_STAMP_MASK) ? value - (COOKIE_STAMP_MASK + 1) : value;
}

/* The window scale that `cookie_stamp` put into a TSval, or NO_SCALE. The client vouches for what it echoes:
 * it can only deceive itself. */
static __always_inline __u8 cookie_stamped_scale(__u32 echo)
{
    return echo & COOKIE_STAMP_SCALE;
}

/* OPTION_SACK or 0. */
static __always_inline __u8 cookie_stamped_options(__u32 echo)
{
    return echo & COOKIE_STAMP_SACK ? OPTION_SACK : 0;
}
