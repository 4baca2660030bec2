/* Which services the program `forget_services` is run for (common/bpf/forget.py). */
#pragma once

#include <linux/types.h>

#include "abi.h"

static __always_inline int forgets(const struct forgetting *asked, __u8 vip_index)
{
    return asked->vip_indexes >> (vip_index & (MAX_SERVICES - 1)) & 1;
}
