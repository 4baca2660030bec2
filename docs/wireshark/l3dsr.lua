-- Wireshark dissector of the l3dsr handoff (docs/handoff.md) and channel (docs/channel.md).
--
--   wireshark -X lua_script:l3dsr.lua capture.pcap
--
-- or put this file into the personal Lua plugins folder (Help, About, Folders). Filters: l3dsr.handoff,
-- l3dsr.handoff.vip_index == 7, l3dsr.channel.type == 2. The handoff is read by a post-dissector: the TCP
-- dissector keeps its own view of the options, and this one stands below it.

local KIND, OPTION_LENGTH, EXID = 253, 16, 0x4c33
local HEADER_SIZE, TAG_AT = 56, 48
local CHANNEL_PORT, CHANNEL_HEADER, TAG_SIZE = 19507, 20, 8

local TYPES = { [1] = "first payload" }
local CHANNEL_TYPES = {
    [1] = "asks for a report", [2] = "report", [3] = "asks for a flow", [4] = "flow", [5] = "filler",
    [15] = "refusal",
}
local ENGINES = { [0] = "unknown", [1] = "raw", [2] = "ebpf" }
local REASONS = { [1] = "bad tag", [2] = "too old", [3] = "unknown version" }

local handoff = Proto("l3dsr_handoff", "L3DSR handoff")
local hf = {
    vip_index = ProtoField.uint8("l3dsr.handoff.vip_index", "VIP index (DSCP)"),
    tos = ProtoField.uint8("l3dsr.handoff.tos", "TOS byte", base.HEX_DEC),
    ecn = ProtoField.uint8("l3dsr.handoff.ecn", "ECN"),
    seq = ProtoField.uint32("l3dsr.handoff.seq", "S - 1"),
    ack = ProtoField.uint32("l3dsr.handoff.ack", "A - 1"),
    window = ProtoField.uint16("l3dsr.handoff.window", "Client's window, not scaled"),
    mss = ProtoField.uint16("l3dsr.handoff.mss", "Client's MSS"),
    sack = ProtoField.bool("l3dsr.handoff.sack_permitted", "SACK permitted"),
    timestamps = ProtoField.bool("l3dsr.handoff.timestamps", "Timestamps"),
    tsval = ProtoField.uint32("l3dsr.handoff.tsval", "TSval"),
    tsecr = ProtoField.uint32("l3dsr.handoff.tsecr", "TSecr"),
    scale = ProtoField.uint8("l3dsr.handoff.window_scale", "Client's window scale"),
    exid = ProtoField.uint16("l3dsr.handoff.exid", "ExID", base.HEX),
    version = ProtoField.uint8("l3dsr.handoff.version", "Version", base.DEC, nil, 0xf0),
    type = ProtoField.uint8("l3dsr.handoff.type", "Type", base.DEC, TYPES, 0x0f),
    fin = ProtoField.bool("l3dsr.handoff.fin", "FIN behind the payload", 8, nil, 0x80),
    key_id = ProtoField.uint8("l3dsr.handoff.key_id", "Key id", base.DEC, nil, 0x40),
    reserved = ProtoField.uint8("l3dsr.handoff.reserved", "Reserved", base.DEC, nil, 0x30),
    promised = ProtoField.uint8("l3dsr.handoff.promised_scale", "Promised window scale", base.DEC, nil, 0x0f),
    time = ProtoField.uint16("l3dsr.handoff.time", "Time (seconds modulo 65536)"),
    tag = ProtoField.bytes("l3dsr.handoff.tag", "Tag"),
    payload = ProtoField.bytes("l3dsr.handoff.payload", "Payload"),
}
handoff.fields = hf

local ip_dsfield, ip_len, ip_version = Field.new("ip.dsfield"), Field.new("ip.len"), Field.new("ip.version")
local tcp_srcport = Field.new("tcp.srcport")

-- Where the experimental option stands in a TCP header; nil if it is not there, or the header not a handoff's.
local function option_at(header)
    local at = 20
    while at < header:len() do
        local kind = header(at, 1):uint()
        if kind == 0 then return nil end
        if kind == 1 then
            at = at + 1
        else
            if at + 2 > header:len() then return nil end
            local length = header(at + 1, 1):uint()
            if length < 2 or at + length > header:len() then return nil end
            if kind == KIND and length == OPTION_LENGTH and header(at + 2, 2):uint() == EXID then return at end
            at = at + length
        end
    end
    return nil
end

local function add_negotiated(tree, header)
    tree:add(hf.mss, header(22, 2))
    tree:add(hf.sack, header(24, 2), header(24, 1):uint() == 4)
    local has_timestamps = header(26, 1):uint() == 8
    tree:add(hf.timestamps, header(26, 10), has_timestamps)
    if has_timestamps then
        tree:add(hf.tsval, header(28, 4))
        tree:add(hf.tsecr, header(32, 4))
    end
    if header(37, 1):uint() == 3 then tree:add(hf.scale, header(39, 1)) end
end

local function add_handoff(tree, pinfo, header, payload, dsfield)
    local tos = dsfield.range:uint()
    local index = bit.rshift(tos, 2)
    tree:append_text(string.format(", DSCP %d (TOS %d, 0x%02x)", index, tos, tos))
    tree:add(hf.vip_index, dsfield.range, index)
    tree:add(hf.tos, dsfield.range)
    tree:add(hf.ecn, dsfield.range, bit.band(tos, 3))
    tree:add(hf.seq, header(4, 4))
    tree:add(hf.ack, header(8, 4))
    tree:add(hf.window, header(14, 2))
    add_negotiated(tree, header)
    tree:add(hf.exid, header(42, 2))
    tree:add(hf.version, header(44, 1))
    tree:add(hf.type, header(44, 1))
    tree:add(hf.fin, header(45, 1))
    tree:add(hf.key_id, header(45, 1))
    tree:add(hf.reserved, header(45, 1))
    tree:add(hf.promised, header(45, 1))
    tree:add(hf.time, header(46, 2))
    tree:add(hf.tag, header(TAG_AT, TAG_SIZE))
    if payload then tree:add(hf.payload, payload) end
    pinfo.cols.info:prepend(string.format("[handoff, DSCP %d] ", index))
end

function handoff.dissector(tvb, pinfo, root)
    local ports, dsfield, total, ip = tcp_srcport(), ip_dsfield(), ip_len(), ip_version()
    if not (ports and dsfield and total and ip) or ports.range:offset() + 20 > tvb:len() then return end
    local at = ports.range:offset()
    local size = bit.rshift(tvb(at + 12, 1):uint(), 4) * 4
    if size ~= HEADER_SIZE or at + size > tvb:len() then return end
    local header = tvb(at, size):tvb()
    if option_at(header) ~= HEADER_SIZE - OPTION_LENGTH then return end
    local finish = math.min(ip.range:offset() + total.value, tvb:len())
    local payload = at + size < finish and tvb(at + size, finish - at - size) or nil
    add_handoff(root:add(handoff, tvb(at, size)), pinfo, tvb(at, size), payload, dsfield)
end

register_postdissector(handoff)

local channel = Proto("l3dsr_channel", "L3DSR channel")
local cf = {
    magic = ProtoField.uint16("l3dsr.channel.magic", "Magic", base.HEX),
    version = ProtoField.uint8("l3dsr.channel.version", "Version", base.DEC, nil, 0xf0),
    type = ProtoField.uint8("l3dsr.channel.type", "Type", base.DEC, CHANNEL_TYPES, 0x0f),
    key_id = ProtoField.uint8("l3dsr.channel.key_id", "Key id", base.DEC, nil, 0x80),
    time = ProtoField.absolute_time("l3dsr.channel.time", "Time", base.UTC),
    nonce = ProtoField.uint64("l3dsr.channel.nonce", "Nonce", base.HEX),
    node = ProtoField.ipv4("l3dsr.channel.node", "Node's bridge address"),
    tag = ProtoField.bytes("l3dsr.channel.tag", "Tag"),
    reason = ProtoField.uint8("l3dsr.channel.reason", "Reason", base.DEC, REASONS),
    tos = ProtoField.uint8("l3dsr.channel.tos", "TOS byte seen", base.HEX_DEC),
    engine = ProtoField.uint8("l3dsr.channel.engine", "Engine", base.DEC, ENGINES),
    vips = ProtoField.uint8("l3dsr.channel.vips", "VIPs"),
    milliseconds = ProtoField.uint16("l3dsr.channel.milliseconds", "Milliseconds"),
    uptime = ProtoField.uint32("l3dsr.channel.uptime", "Uptime (seconds)"),
    bytes_to_clients = ProtoField.uint64("l3dsr.channel.bytes_to_clients", "Bytes to clients"),
    release = ProtoField.stringz("l3dsr.channel.release", "Release"),
    vip_index = ProtoField.uint8("l3dsr.channel.vip_index", "VIP index"),
    vip = ProtoField.ipv4("l3dsr.channel.vip", "VIP"),
    vip_port = ProtoField.uint16("l3dsr.channel.vip_port", "VIP port"),
    flows = ProtoField.uint32("l3dsr.channel.flows", "Flows"),
    client = ProtoField.ipv4("l3dsr.channel.client", "Client"),
    client_port = ProtoField.uint16("l3dsr.channel.client_port", "Client port"),
    state = ProtoField.stringz("l3dsr.channel.state", "State"),
    age = ProtoField.uint32("l3dsr.channel.age", "Age (milliseconds)"),
    idle = ProtoField.uint32("l3dsr.channel.idle", "Idle (milliseconds)"),
    details = ProtoField.string("l3dsr.channel.details", "Details"),
}
channel.fields = cf

local function add_report(tree, body)
    if body:len() < 44 then return end
    tree:add(cf.tos, body(0, 1))
    tree:add(cf.engine, body(2, 1))
    tree:add(cf.vips, body(3, 1))
    tree:add(cf.milliseconds, body(4, 2))
    tree:add(cf.uptime, body(8, 4))
    tree:add(cf.bytes_to_clients, body(12, 8))
    tree:add(cf.release, body(20, 24))
    for at = 44, body:len() - 12, 12 do
        local entry = tree:add(channel, body(at, 12), "VIP")
        entry:add(cf.vip_index, body(at, 1))
        entry:add(cf.vip_port, body(at + 2, 2))
        entry:add(cf.vip, body(at + 4, 4))
        entry:add(cf.flows, body(at + 8, 4))
    end
end

local function add_flow_question(tree, body)
    if body:len() < 8 then return end
    tree:add(cf.vip_index, body(0, 1))
    tree:add(cf.client_port, body(2, 2))
    tree:add(cf.client, body(4, 4))
end

local function add_flow(tree, body)
    if body:len() < 24 then return end
    tree:add(cf.state, body(0, 16))
    tree:add(cf.age, body(16, 4))
    tree:add(cf.idle, body(20, 4))
    if body:len() > 24 then tree:add(cf.details, body(24)) end
end

local BODIES = { [2] = add_report, [3] = add_flow_question, [4] = add_flow }

function channel.dissector(tvb, pinfo, root)
    if tvb:len() < CHANNEL_HEADER + 4 or tvb(0, 2):uint() ~= EXID then return 0 end
    local kind = bit.band(tvb(2, 1):uint(), 0x0f)
    local tree = root:add(channel, tvb())
    pinfo.cols.protocol = "L3DSR"
    pinfo.cols.info = CHANNEL_TYPES[kind] or "unknown"
    tree:add(cf.magic, tvb(0, 2))
    tree:add(cf.version, tvb(2, 1))
    tree:add(cf.type, tvb(2, 1))
    tree:add(cf.key_id, tvb(3, 1))
    tree:add(cf.time, tvb(4, 4))
    tree:add(cf.nonce, tvb(8, 8))
    tree:add(cf.node, tvb(16, 4))
    if kind == 15 then
        tree:add(cf.reason, tvb(CHANNEL_HEADER, 1))
    elseif kind ~= 5 and tvb:len() >= CHANNEL_HEADER + TAG_SIZE then
        local finish = tvb:len() - TAG_SIZE
        if BODIES[kind] and finish > CHANNEL_HEADER then
            BODIES[kind](tree, tvb(CHANNEL_HEADER, finish - CHANNEL_HEADER):tvb())
        end
        tree:add(cf.tag, tvb(finish, TAG_SIZE))
    end
    return tvb:len()
end

DissectorTable.get("udp.port"):add(CHANNEL_PORT, channel)
