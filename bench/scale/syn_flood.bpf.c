/* Makes of each packet a SYN of an address and a port picked at random (bench/scale/syn_flood.py). */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <linux/types.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "checksum.h"

#define ADDRESS_MASK 0x1ffff
#define HIGHEST_PORT 0xffff

struct headers {
    struct iphdr ip;
    struct tcphdr tcp;
    __u8 options[20];
};
#define TCP_BYTES (sizeof(struct headers) - sizeof(struct iphdr))

/* Of one client, without checksums. The kernel uses its packets again as the stack has left them, so all of it is
 * written each time. */
const volatile __u16 link[ETH_HLEN / 2];
const volatile struct headers syn;
/* Of 198.18.0.0/15, in host byte order. */
const volatile __u32 first_address;

static __always_inline void spoof(struct headers *h)
{
    __u64 sum;

    h->ip.saddr = bpf_htonl(first_address + (bpf_get_prandom_u32() & ADDRESS_MASK));
    h->ip.check = ~sum_fold(sum_words(&h->ip, sizeof(h->ip) / 4));
    h->tcp.source = bpf_htons(bpf_get_prandom_u32() & HIGHEST_PORT);
    h->tcp.seq = bpf_get_prandom_u32();
    sum = sum_words(&h->ip.saddr, 2) + bpf_htons(IPPROTO_TCP) + bpf_htons(TCP_BYTES);
    h->tcp.check = ~sum_fold(sum + sum_words(&h->tcp, TCP_BYTES / 4));
}

SEC("xdp")
int flood(struct xdp_md *packet)
{
    void *data = (void *)(long)packet->data, *end = (void *)(long)packet->data_end;
    struct headers headers = syn;
    __u16 *words = data;

    if (data + ETH_HLEN + sizeof(headers) > end)
        return XDP_DROP;
    spoof(&headers);
    for (int at = 0; at < ETH_HLEN / 2; at++)
        words[at] = link[at];
    __builtin_memcpy(data + ETH_HLEN, &headers, sizeof(headers));
    return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
