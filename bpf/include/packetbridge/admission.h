/* Which handoffs are believed: docs/handoff.md, the receiver's steps (packetbridge/core/admission.py). */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "clock.h"
#include "frame.h"
#include "handoff.h"
#include "packetbridge_abi.h"

#define OFFSET_FLAGS_AT 6
#define FLAG_BITS 0x0fff

/* A handoff, and the wall-clock second in which it was made. */
struct admitted {
    struct handoff handoff;
    __u32 time;
};

/* The twelve bits of the header, the reserved ones too. */
static __always_inline __u16 all_flags(const struct frame *f)
{
    return bpf_ntohs(((const __be16 *)&f->tcp)[OFFSET_FLAGS_AT]) & FLAG_BITS;
}

static __always_inline enum counter reason_of(int error)
{
    switch (error) {
    case HANDOFF_BAD_PAYLOAD:
        return COUNT_BAD_HANDOFF_PAYLOAD;
    case HANDOFF_BAD_OPTIONS:
        return COUNT_BAD_HANDOFF_OPTIONS;
    case HANDOFF_UNKNOWN_VERSION:
        return COUNT_UNKNOWN_HANDOFF_VERSION;
    default:
        return COUNT_NOT_A_HANDOFF;
    }
}

/* The handoff in a frame with SYN. 0, or the counter of the reason for which it is not believed. */
static __always_inline int admit(const struct frame *f, struct admitted *admitted)
{
    __u32 wall = wall_seconds();
    int age, error;

    if (all_flags(f) != FLAG_SYN)
        return COUNT_ABSURD_FLAGS;
    error = handoff_parse(f, &admitted->handoff);
    if (error)
        return reason_of(error);
    if (!handoff_verify(f))
        return COUNT_HANDOFF_BAD_TAG;
    age = handoff_age(&admitted->handoff, wall);
    if (age > HANDOFF_MAX_AGE || age < -HANDOFF_MAX_AGE)
        return COUNT_HANDOFF_TOO_OLD;
    admitted->time = wall - age;
    return 0;
}
