/* Gives a program ordinary segments of flows picked at random: for the time that it takes (bench/scale/cost.py).
 *
 * The packet's mark is the number of flows, its priority says to whom the segment is given. */
#include <linux/bpf.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "link.h"

struct headers {
    struct iphdr ip;
    struct tcphdr tcp;
    __u8 timestamps[12];
};

/* Of one flow; those of the others have another client. */
const volatile struct headers of_client, of_backend;

/* Flows count up the ports of the first address, then those of the next one (bench/scale/population.py). */
const volatile __u32 first_address, first_port, port_bits;

/* Programs that may be given segments. */
struct {
    __uint(type, BPF_MAP_TYPE_PROG_ARRAY);
    __uint(max_entries, 2);
    __type(key, __u32);
    __type(value, __u32);
} takers SEC(".maps");

struct cell {
    __u8 bytes[128];
};

/* About as much memory as a table of so many flows takes. */
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct cell);
} memory SEC(".maps");

static __always_inline void pick_client(struct __sk_buff *skb, __be32 *address, __be16 *port)
{
    __u32 flow = bpf_get_prandom_u32() % skb->mark;

    *address = bpf_htonl(first_address + (flow >> port_bits));
    *port = bpf_htons(first_port + (flow & ((1 << port_bits) - 1)));
}

/* Does not return where there is somebody to give it to. A verdict. */
static __always_inline int give(struct __sk_buff *skb, const struct headers *headers)
{
    if (bpf_skb_store_bytes(skb, LINK, headers, sizeof(*headers), 0))
        return TC_ACT_SHOT;
    bpf_tail_call(skb, &takers, skb->priority);
    return TC_ACT_SHOT;
}

SEC("tc")
int from_client(struct __sk_buff *skb)
{
    struct headers headers = of_client;

    pick_client(skb, &headers.ip.saddr, &headers.tcp.source);
    return give(skb, &headers);
}

SEC("tc")
int from_backend(struct __sk_buff *skb)
{
    struct headers headers = of_backend;

    pick_client(skb, &headers.ip.daddr, &headers.tcp.dest);
    return give(skb, &headers);
}

/* The taker that does nothing. */
SEC("tc")
int nothing(struct __sk_buff *skb)
{
    (void)skb;
    return TC_ACT_UNSPEC;
}

/* The one that reads a single byte at random: what nobody who looks a flow up can spare. */
SEC("tc")
int one_read(struct __sk_buff *skb)
{
    __u32 at = bpf_get_prandom_u32() % skb->mark;
    volatile struct cell *cell = bpf_map_lookup_elem(&memory, &at);

    return cell && !cell->bytes[0] ? TC_ACT_UNSPEC : TC_ACT_SHOT;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
