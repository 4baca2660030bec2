/* Which packets are taken off the host, as common/net/intake.py says it of a packetbridge. */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "packetbridge/maps.h"

#define DSCP_SHIFT 2

struct intake_search {
    __be32 address;
    __be16 port;
    __u8 is_backend;
    __u8 is_found;
};

static long intake_compare(__u32 index, void *context)
{
    struct intake_search *search = context;
    struct bridge_service *service = bpf_map_lookup_elem(&services, &index);

    if (!service || !service->in_use)
        return 0;
    if (search->is_backend)
        search->is_found = service->backend == search->address;
    else
        search->is_found = service->bridge == search->address && service->vip_port == search->port;
    return search->is_found;
}

/* Whether it is the bridge address, and the port that of any service. It looks at all services: not for
 * packets of known ones. */
static __always_inline int intake_has(__be32 address, __be16 port)
{
    struct intake_search search = {.address = address, .port = port};

    bpf_loop(MAX_SERVICES, intake_compare, &search, 0);
    return search.is_found;
}

/* Whether any service has its backend at the address. */
static __always_inline int intake_has_backend(__be32 address)
{
    struct intake_search search = {.address = address, .is_backend = 1};

    bpf_loop(MAX_SERVICES, intake_compare, &search, 0);
    return search.is_found;
}

/* The service that a DSCP stands for; NULL where there is none. */
static __always_inline struct bridge_service *service_of(__u32 vip_index)
{
    struct bridge_service *service = bpf_map_lookup_elem(&services, &vip_index);

    return service && service->in_use ? service : NULL;
}
