/* What the headers of packets do, a program for each thing: map `question` says with what, `answer` what came
 * out. */
#include <linux/bpf.h>

#include "abi.h"
#include "activity.h"
#include "clock.h"
#include "counters.h"
#include "frame.h"
#include "limit.h"
#include "link.h"
#include "rewrite.h"
#include "tcp_options.h"

char _license[] SEC("license") = "Dual MIT/GPL";

#define DONE 0
#define REFUSED -1
/* TC_ACT_UNSPEC and TC_ACT_SHOT */
#define PASS -1
#define DROP 2

enum counter {
    COUNT_SUPERPACKETS = 0,
    COUNT_CALLS = 3,
};

struct question {
    __be32 source;
    __be32 destination;
    __be16 source_port;
    __be16 destination_port;
    __u32 seq_delta;
    __u32 ack_delta;
    __u32 value_delta;
    __u32 echo_delta;
    __s32 window_shift;
    __u32 dscp;
    __u32 number;
    __u64 now_ns;
};

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct question);
} question SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, __u32[4]);
} answer SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct said);
} saying SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct activity);
} cell SEC(".maps");

static __always_inline void *only(void *map)
{
    __u32 first = 0;

    return bpf_map_lookup_elem(map, &first);
}

SEC("tc")
int load(struct __sk_buff *skb)
{
    struct frame f = {};
    __u32 *told = only(&answer);
    int error = frame_load(skb, &f);

    if (!told || error)
        return error;
    told[0] = f.tcp_size;
    told[1] = f.payload;
    told[2] = ip_checksum_holds(&f.ip);
    told[3] = tcp_checksum_holds(skb, &f);
    return DONE;
}

SEC("tc")
int read_syn(struct __sk_buff *skb)
{
    struct frame f = {};
    struct said *said = only(&saying);

    if (!said || frame_load(skb, &f))
        return REFUSED;
    options_syn(&f, said);
    return DONE;
}

SEC("tc")
int read_stamps(struct __sk_buff *skb)
{
    struct frame f = {};
    __u32 *told = only(&answer);
    __u32 value = 0, echo = 0;

    if (!told || frame_load(skb, &f))
        return REFUSED;
    told[0] = options_stamps(&f, &value, &echo);
    told[1] = value;
    told[2] = echo;
    return DONE;
}

/* Makes of any segment one of our own, with the options of a SYN and no payload. */
SEC("tc")
int emit_syn(struct __sk_buff *skb)
{
    struct frame was = {}, is;
    struct said *said = only(&saying);
    __u32 payload = 0;

    if (!said || frame_load(skb, &was) || skb_sum(skb, TCP_AT + was.tcp_size, was.payload, &payload))
        return REFUSED;
    is = was;
    frame_set_sizes(&is, TCP_SIZE + options_emit_syn(&is, said), 0);
    frame_set_flags(&is, FLAG_SYN);
    is.ip.tos = 0;
    ip_fresh(&is.ip);
    if (frame_resize(skb, bpf_ntohs(is.ip.tot_len)))
        return REFUSED;
    return frame_commit(skb, &was, &is, ~payload);
}

/* Appends 4 bytes `number` to the payload, and puts timestamps in the place of the options. */
SEC("tc")
int extend(struct __sk_buff *skb)
{
    struct question *asked = only(&question);
    struct frame was = {}, is;
    __u32 total, more;

    if (!asked || frame_load(skb, &was) || was.payload)
        return REFUSED;
    is = was;
    frame_set_sizes(&is, TCP_SIZE + options_emit_stamps(&is, asked->value_delta, asked->echo_delta),
                    sizeof(more));
    total = bpf_ntohs(is.ip.tot_len);
    ip_update(&was.ip, &is.ip);
    more = asked->number;
    if (frame_resize(skb, total))
        return REFUSED;
    if (bpf_skb_store_bytes(skb, LINK + total - sizeof(more), &more, sizeof(more), 0))
        return REFUSED;
    return frame_commit(skb, &was, &is, more);
}

SEC("tc")
int rewrite(struct __sk_buff *skb)
{
    struct question *asked = only(&question);
    struct frame was = {}, is;

    if (!asked || frame_load(skb, &was))
        return REFUSED;
    is = was;
    is.ip.saddr = asked->source;
    is.ip.daddr = asked->destination;
    is.ip.tos = asked->dscp << 2 | (is.ip.tos & ECN_MASK);
    ip_update(&was.ip, &is.ip);
    is.tcp.source = asked->source_port;
    is.tcp.dest = asked->destination_port;
    rewrite_numbers(&is, asked->seq_delta, asked->ack_delta, asked->value_delta, asked->echo_delta,
                    asked->window_shift);
    return frame_commit(skb, &was, &is, 0);
}

SEC("tc")
int forward(struct __sk_buff *skb)
{
    struct question *asked = only(&question);
    struct frame was = {}, is;

    if (!asked || frame_load(skb, &was))
        return REFUSED;
    is = was;
    is.ip.daddr = asked->destination;
    is.ip.tos = asked->dscp << 2 | (is.ip.tos & ECN_MASK);
    is.ip.ttl--;
    ip_update(&was.ip, &is.ip);
    return frame_commit_ip(skb, &was, &is);
}

SEC("tc")
int raise(struct __sk_buff *skb)
{
    struct question *asked = only(&question);
    struct frame was = {}, is;

    if (!asked || frame_load(skb, &was))
        return REFUSED;
    is = was;
    raise_echo(&is, asked->number);
    return frame_commit(skb, &was, &is, 0);
}

SEC("tc")
int observe(struct __sk_buff *skb)
{
    struct question *asked = only(&question);
    struct activity *a = only(&cell);
    struct frame f = {};

    if (!asked || frame_load(skb, &f))
        return REFUSED;
    return activity_observe(a, bpf_ntohl(f.tcp.seq), frame_flags(&f), f.payload, asked->number);
}

SEC("tc")
int advance(struct __sk_buff *skb)
{
    struct question *asked = only(&question);
    struct activity *a = only(&cell);
    struct frame f = {};

    if (!asked || !a || frame_load(skb, &f))
        return REFUSED;
    activity_advance(a, bpf_ntohl(f.tcp.seq), f.payload, asked->number);
    return activity_is_idle(a, asked->number + asked->seq_delta);
}

SEC("syscall")
int take(void *context)
{
    struct question *asked = only(&question);
    __u64 *arrival = only(&limits);

    (void)context;
    return asked && arrival && limit_take(arrival, asked->number, asked->now_ns);
}

SEC("syscall")
int tell_time(void *context)
{
    __u32 *told = only(&answer);

    (void)context;
    if (!told)
        return REFUSED;
    told[0] = now_seconds();
    told[1] = now_milliseconds();
    told[2] = wall_seconds();
    count(COUNT_CALLS);
    return DONE;
}

SEC("tc")
int swap(struct __sk_buff *skb)
{
    if (!link_is_ours(skb))
        return REFUSED;
    return link_swap(skb);
}

/* A splice within one host: the numbers that the server sends grow by the deltas, and what listens at
 * destination_port is reached at source_port. */
SEC("tc")
int to_server(struct __sk_buff *skb)
{
    struct question *asked = only(&question);
    struct frame was = {}, is;

    if (!asked || !link_is_ours(skb) || frame_load(skb, &was) || was.tcp.dest != asked->source_port)
        return PASS;
    if (skb->gso_size)
        count(COUNT_SUPERPACKETS);
    is = was;
    is.ip.daddr = asked->destination;
    is.tcp.dest = asked->destination_port;
    ip_update(&was.ip, &is.ip);
    rewrite_numbers(&is, 0, -asked->seq_delta, 0, -asked->value_delta, 0);
    return frame_commit(skb, &was, &is, 0) ? DROP : PASS;
}

SEC("tc")
int to_client(struct __sk_buff *skb)
{
    struct question *asked = only(&question);
    struct frame was = {}, is;

    if (!asked || !link_carries_ipv4(skb) || frame_load(skb, &was))
        return PASS;
    if (was.tcp.source != asked->destination_port)
        return PASS;
    is = was;
    is.ip.saddr = asked->source;
    is.tcp.source = asked->source_port;
    ip_update(&was.ip, &is.ip);
    rewrite_numbers(&is, asked->seq_delta, 0, asked->value_delta, 0, 0);
    return frame_commit(skb, &was, &is, 0) ? DROP : PASS;
}
