/* Bytes in map memory that are read and written at any place. An index is reduced to the room instead of
 * being compared with its size, so the verifier need not know it. */
#pragma once

#include <linux/types.h>

#include <bpf/bpf_helpers.h>

/* A power of two. */
#define ROOM_SIZE 16384
/* What may be read or written at once. */
#define ROOM_REACH 512

struct room {
    __u8 bytes[ROOM_SIZE + ROOM_REACH];
};

/* ROOM_REACH bytes. */
static __always_inline __u8 *room_at(struct room *room, __u64 at)
{
    return room->bytes + (at & (ROOM_SIZE - 1));
}
