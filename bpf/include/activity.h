/* What one end's packets tell of a flow's life, as common/tcp/activity.py says it.
 *
 * Any CPU may write a cell: each number in it stays one that was true. No choice of a node depends on it. */
#pragma once

#include <bpf/bpf_helpers.h>
#include <linux/types.h>

#include "abi.h"
#include "frame.h"
#include "seq.h"

/* How long a flow may be silent that has not ended. */
const volatile __u32 open_idle_seconds = 7500;

/* After a segment whose last byte, SYN or FIN stands before end. */
static __always_inline void activity_move(struct activity *a, __u32 end)
{
    __u32 steps = end - a->next;

    if (steps && steps < REACH)
        a->next = end;
}

static __always_inline enum sign activity_sign_of_fin(struct activity *a, __u32 start, __u32 end)
{
    if (seq_lt(end + 1, a->next) || seq_distance(a->next, start) >= REACH)
        return SIGN_DATA;
    a->fin = end;
    a->has_fin = 1;
    if (seq_gt(start, a->next))
        return SIGN_FIN_AHEAD;
    activity_move(a, end + 1);
    return SIGN_FIN_IN_ORDER;
}

static __always_inline enum sign activity_sign_behind(struct activity *a, __u32 start, __u32 end)
{
    __u32 fin = a->fin;

    if (start == fin + 1 || (start != end && end == fin)) {
        a->next = fin + 1;
        return SIGN_BEHIND_FIN;
    }
    if (start == end && seq_le(end, fin))
        return SIGN_BEFORE_FIN;
    if (seq_gt(end, fin)) {
        a->next = end;
        return SIGN_INSTEAD_OF_FIN;
    }
    activity_move(a, end);
    return SIGN_DATA;
}

static __always_inline enum sign activity_sign(struct activity *a, __u32 start, __u8 flags, __u32 payload)
{
    __u32 end = start + payload;

    if (flags & FLAG_RST)
        return start == a->next || (a->has_fin && start == a->fin) ? SIGN_RST_IN_ORDER : SIGN_RST_ELSEWHERE;
    if (flags & FLAG_FIN)
        return activity_sign_of_fin(a, start, end);
    if (a->has_fin && seq_within(a->next, end, REACH))
        return activity_sign_behind(a, start, end);
    activity_move(a, end);
    return SIGN_DATA;
}

/* Takes note of a segment that this end sent. Returns the phase. */
__noinline int activity_observe(struct activity *a, __u32 seq, __u8 flags, __u32 payload, __u32 now)
{
    __u32 phase, sign;

    if (!a)
        return PHASE_OPEN;
    phase = a->phase & 3;
    sign = activity_sign(a, seq, flags, payload) & 7;
    phase = next_phase[phase][sign];
    a->phase = phase;
    if (phase == PHASE_OPEN)
        a->has_fin = 0;
    a->seen = now;
    return phase;
}

/* The same for a segment without FIN and RST in phase OPEN. A cell that says it already is not written, so
 * that CPUs need not pass it around. */
static __always_inline void activity_advance(struct activity *a, __u32 seq, __u32 payload, __u32 now)
{
    activity_move(a, seq + payload);
    if (a->seen != now)
        a->seen = now;
}

/* A cell for an end whose next byte has this number. */
static __always_inline void activity_begin(struct activity *a, __u32 next, __u32 now)
{
    *a = (struct activity){.next = next, .seen = now};
}

/* How long the end may be silent. */
static __always_inline __u32 activity_patience(const struct activity *a)
{
    __u32 phase = a->phase & 3, patience = idle_seconds[phase];

    if (phase == PHASE_OPEN || phase == PHASE_FIN_AHEAD || patience > open_idle_seconds)
        return open_idle_seconds;
    return patience;
}

/* Whether the end has been silent for longer than its phase allows. */
static __always_inline int activity_is_idle(const struct activity *a, __u32 now)
{
    return seq_distance(a->seen, now) >= (__s32)activity_patience(a);
}
