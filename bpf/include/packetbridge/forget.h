/* VIPs that are gone: their flows are buried, but for those that open. These are swept with their payload. */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "forgetting.h"
#include "packetbridge/flows.h"
#include "packetbridge/maps.h"

static long forget_flow(void *map, const struct flow_id *key, struct bridge_flow *flow,
                        struct forgetting *asked)
{
    struct flow_id id = *key;
    int was_over = is_over(flow);

    (void)map;
    if (flow->state == STATE_OPENING || !forgets(asked, id.vip_index))
        return 0;
    flow_end(&id, flow);
    if (!was_over)
        asked->flows++;
    return 0;
}

static __always_inline void forget_all(struct forgetting *asked)
{
    bpf_for_each_map_elem(&flows, forget_flow, asked, 0);
}
