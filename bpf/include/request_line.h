/* What of a client's first bytes is hashed: the request line, read as common/hashing/request_key.py reads it.
 *
 * Its answer is final from the byte on that settles it, so no more is read than that byte needs. Left to
 * Python are requests that it answers itself (status 400 and 414), kinds of key that are unknown here, the
 * method CONNECT, targets that do not begin with a slash (absolute-form, `*`), and request lines that end
 * behind REQUEST_READ. */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "balancer_abi.h"
#include "normalise.h"
#include "octets.h"
#include "room.h"
#include "xxh64.h"

/* Bytes of a payload that are read at most: a target of 9 KiB with all that may stand around it. */
#define REQUEST_READ 10240
/* Bytes that are taken out of the packet at once; more than empty lines and method together. */
#define REQUEST_CHUNK ROOM_REACH
/* Bytes of a target that are looked at in one step. */
#define REQUEST_RUN 32

#define REQUEST_EMPTY_LINES 8
#define REQUEST_METHOD_LIMIT 32
#define REQUEST_VERSION_SIZE 8

/* Methods as numbers. */
#define METHOD_PRI 0x505249ULL
#define METHOD_CONNECT 0x434f4e4e454354ULL

/* The bytes that are looked at one by one in each part of a target. */
#define REQUEST_STOPS_FRAGMENT OCTET_END
#define REQUEST_STOPS_QUERY (REQUEST_STOPS_FRAGMENT | OCTET_MARK)
#define REQUEST_STOPS_PATH (REQUEST_STOPS_QUERY | OCTET_QUERY)

#define SPELLED_PATH 1
#define SPELLED_QUERY 2

enum request_verdict {
    REQUEST_KEY,
    REQUEST_NEED_MORE,
    REQUEST_NOT_HTTP,
    REQUEST_ODD, /* Python reads it, and decides */
};

/* Some verdict is still to come. */
#define REQUEST_GOES_ON (-1)

struct request_line {
    struct room room; /* the payload's beginning, and a zero; then the key, at `target` */
    __u32 size;       /* bytes of the payload */
    __u32 held;       /* of which stand in the room */
    __u32 at;         /* what is read next */
    __u32 target;
    __u32 path_end; /* 0: it ends where the query does */
    __u32 query_end;
    __u32 key_size;
    __u8 stops;   /* REQUEST_STOPS_ of the part of the target that is being read */
    __u8 spelled; /* SPELLED_PATH, SPELLED_QUERY: what of it may have another spelling */
    __u8 zero[2];
    struct normaliser normaliser;
};

/* The request that this CPU has read last. */
struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct request_line);
} request_lines SEC(".maps");

struct request_reading {
    struct __sk_buff *skb;
    struct request_line *line;
    __u32 payload_at;
};

/* A 1 stands for any digit. */
const __u8 request_version[REQUEST_VERSION_SIZE] = {'H', 'T', 'T', 'P', '/', '1', '.', '1'};

/* The next chunk of the payload. 0, or 1 where there is none, or where no more is read. */
static __always_inline int request_load(const struct request_reading *of, struct request_line *line)
{
    __u64 held = line->held, left = line->size - held;

    if (left > REQUEST_CHUNK)
        left = REQUEST_CHUNK;
    if (!left || held > REQUEST_READ - REQUEST_CHUNK)
        return 1;
    barrier_var(left);
    left = ((left - 1) & (REQUEST_CHUNK - 1)) + 1; /* as it was, but now the verifier knows it */
    if (bpf_skb_load_bytes(of->skb, of->payload_at + held, room_at(&line->room, held), left))
        return 1;
    line->held = held + left;
    *room_at(&line->room, held + left) = 0;
    return 0;
}

/* What it means that the bytes which are held end here. */
static __always_inline int request_unsettled(const struct request_line *line)
{
    return line->held < line->size ? REQUEST_ODD : REQUEST_NEED_MORE;
}

static __always_inline int request_skip_empty_lines(struct request_line *line)
{
    const __u8 *text;

    for (int i = 0; i < REQUEST_EMPTY_LINES; i++) {
        text = room_at(&line->room, line->at);
        if (text[0] == '\n')
            line->at += 1;
        else if (text[0] == '\r' && text[1] == '\n')
            line->at += 2;
        else
            break;
    }
    text = room_at(&line->room, line->at);
    if (line->at == line->held || (line->at + 1 == line->held && text[0] == '\r'))
        return request_unsettled(line);
    return REQUEST_GOES_ON;
}

/* Method, space, and the slash that an ordinary target begins with. */
static __always_inline int request_read_method(struct request_line *line)
{
    const __u8 *text = room_at(&line->room, line->at);
    __u64 method = 0; /* its last eight bytes as a number */
    __u32 size;
    __u8 byte = 0;

    for (size = 0; size <= REQUEST_METHOD_LIMIT; size++) {
        byte = text[size];
        if (!(octet_class[byte] & OCTET_TOKEN))
            break;
        method = method << 8 | byte;
    }
    line->at += size;
    if (size > REQUEST_METHOD_LIMIT)
        return REQUEST_ODD;
    if (line->at == line->held)
        return request_unsettled(line);
    if (size && (byte == '\r' || byte == '\n'))
        return REQUEST_ODD;
    if (byte != ' ' || !size || method == METHOD_PRI)
        return REQUEST_NOT_HTTP;
    line->at++;
    if (method == METHOD_CONNECT)
        return REQUEST_ODD;
    if (line->at == line->held)
        return request_unsettled(line);
    return *room_at(&line->room, line->at) == '/' ? REQUEST_GOES_ON : REQUEST_ODD;
}

/* A byte of the target that is not usual in its place. 1 if the target ends there. */
static __always_inline int request_take(struct request_line *line, __u8 byte)
{
    __u32 at = line->at;

    switch (byte) {
    case '?':
        line->path_end = at;
        line->stops = REQUEST_STOPS_QUERY;
        break;
    case '#':
        line->query_end = at;
        line->stops = REQUEST_STOPS_FRAGMENT;
        break;
    case '%':
    case '/':
    case '.':
        line->spelled |= line->stops == REQUEST_STOPS_PATH ? SPELLED_PATH : SPELLED_QUERY;
        break;
    default:
        return 1;
    }
    line->at = at + 1;
    return 0;
}

static long request_step(__u32 index __attribute__((unused)), struct request_reading *of)
{
    struct request_line *line = of->line;
    __u8 behind_slash = line->stops == REQUEST_STOPS_PATH ? OCTET_SEGMENT : 0;
    __u8 before = octet_class[*room_at(&line->room, line->at - 1)];
    const __u8 *text = room_at(&line->room, line->at);
    __u8 class, byte = 0, stops = line->stops;
    __u32 run;

    for (run = 0; run < REQUEST_RUN; run++) {
        byte = text[run];
        class = octet_class[byte];
        if (class & (stops | (before >> 1 & behind_slash)))
            break;
        before = class;
    }
    line->at += run;
    if (run == REQUEST_RUN)
        return 0;
    return line->at == line->held ? request_load(of, line) : request_take(line, byte);
}

/* The target and the space behind it. */
static __always_inline int request_read_target(struct request_reading *of, struct request_line *line,
                                               __u32 limit)
{
    line->target = line->at;
    line->stops = REQUEST_STOPS_PATH;
    bpf_loop(REQUEST_READ, request_step, of, 0);
    if (line->at - line->target > limit)
        return REQUEST_ODD;
    if (line->at == line->held)
        return request_unsettled(line);
    if (*room_at(&line->room, line->at) != ' ')
        return REQUEST_ODD;
    if (!line->query_end)
        line->query_end = line->at;
    if (!line->path_end)
        line->path_end = line->query_end;
    line->at++;
    return REQUEST_GOES_ON;
}

static __always_inline int request_read_version(const struct request_reading *of, struct request_line *line)
{
    const __u8 *text = room_at(&line->room, line->at);
    __u32 left;

    if (line->held - line->at < REQUEST_VERSION_SIZE)
        request_load(of, line);
    left = line->held - line->at;
    for (__u32 i = 0; i < REQUEST_VERSION_SIZE; i++) {
        if (i == left)
            return request_unsettled(line);
        if (request_version[i] == '1' ? text[i] < '0' || text[i] > '9' : text[i] != request_version[i])
            return REQUEST_ODD;
    }
    return REQUEST_GOES_ON;
}

static __always_inline void request_make_key(struct request_line *line,
                                             const struct balancer_service *service)
{
    __u32 end = line->path_end, slashes = NORMALISE_NO_LIMIT, matters = SPELLED_PATH;

    if (service->key_kind == KEY_URI) {
        end = line->query_end;
        matters |= SPELLED_QUERY;
    }
    if (service->key_kind == KEY_SEGMENTS)
        slashes = service->key_argument;
    if (line->spelled & matters || service->key_kind == KEY_SEGMENTS)
        line->key_size =
            normalise(&line->room, &line->normaliser, line->target, line->path_end, end, slashes);
    else
        line->key_size = end - line->target;
}

/* Reads the request line of a payload of `size` bytes that begins at offset `at` of the packet. An enum
 * request_verdict; after REQUEST_KEY the key can be hashed, until the next call on this CPU. */
__noinline int request_read(struct __sk_buff *skb, const struct balancer_service *service, __u32 at,
                            __u32 size)
{
    __u32 first = 0;
    struct request_line *line = bpf_map_lookup_elem(&request_lines, &first);
    struct request_reading of = {.skb = skb, .line = line, .payload_at = at};
    int verdict;

    if (!line || !service || service->key_kind == KEY_UNREAD)
        return REQUEST_ODD;
    line->size = size;
    line->held = line->at = line->path_end = line->query_end = line->spelled = 0;
    *room_at(&line->room, 0) = 0;
    request_load(&of, line);
    verdict = request_skip_empty_lines(line);
    if (verdict == REQUEST_GOES_ON)
        verdict = request_read_method(line);
    if (verdict == REQUEST_GOES_ON)
        verdict = request_read_target(&of, line, service->target_limit);
    if (verdict == REQUEST_GOES_ON)
        verdict = request_read_version(&of, line);
    if (verdict != REQUEST_GOES_ON)
        return verdict;
    request_make_key(line, service);
    return REQUEST_KEY;
}

/* XXH64 of the key that `request_read` has found. */
__noinline __u64 request_hash(__u64 seed)
{
    __u32 first = 0;
    struct request_line *line = bpf_map_lookup_elem(&request_lines, &first);

    return line ? xxh64(&line->room, line->target, line->key_size, seed) : 0;
}
