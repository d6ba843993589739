/*
 * The tiny guest, part 2: the clock, the test pages, the console and the
 * network service. Freestanding 32-bit code, entered from tiny.S.
 *
 * What it is for: a virtual machine that shows at once when its memory, its
 * devices or its outside view went back in time or lost something.
 *
 *   - Every timer tick it checks that each test page still holds what the last
 *     tick wrote, writes new values, and counts (`CNT xxxxxxxx` on COM1). A lost
 *     page update shows as `X`, a lost or repeated tick as a gap in the numbers.
 *   - Over UDP it keeps one counter for a client, with replies that tell the
 *     client whether the guest had seen a request before. A reply that was
 *     released too early shows up as a refusal after a takeover.
 *
 * All state is in RAM or in emulated devices. Nothing depends on real time.
 */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;

/* ROM, patched from outside; hence volatile: the compiler must not guess. */
extern const volatile u32 param_pages;
extern const volatile u16 param_pit_divisor;
extern const volatile u32 param_print_every;
extern const volatile u8 param_ipv4[4];
extern const volatile u32 param_fill;

/*
 * Everything the guest remembers, at RAM address 0x600 (tiny.ld). The first
 * words are an interface for tests, see testing/guests/README.md. tiny.S knows the
 * offsets of tick_due and nic_due.
 */
struct state {
    u32 tick;       /* 0x00 timer ticks handled */
    u32 count;      /* 0x04 requests accepted by the UDP service */
    u32 bad_pages;  /* 0x08 wrong test pages seen, all ticks together */
    u32 nic_found;  /* 0x0c 1 if there is a NIC */
    u32 frames;     /* 0x10 frames taken from the receive ring */
    u32 nic_resets; /* 0x14 times the receive ring had to be thrown away */
    u32 tick_due;   /* 0x18 set by the timer interrupt */
    u32 nic_due;    /* 0x1c set by the NIC interrupt */
    u32 next_page;  /* 0x20 ring page of the next frame to read */
    u8 mac[6];      /* 0x24 our station address */
};
extern volatile struct state state;

static inline void outb(u16 port, u8 value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline u8 inb(u16 port)
{
    u8 value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

/* Block moves between a port and memory, 16 bits at a time. */
static inline void insw(u16 port, void *to, u32 words)
{
    __asm__ volatile("rep insw" : "+D"(to), "+c"(words) : "d"(port) : "memory");
}

static inline void outsw(u16 port, const void *from, u32 words)
{
    __asm__ volatile("rep outsw" : "+S"(from), "+c"(words) : "d"(port) : "memory");
}

/* ------------------------------------------------------------------ console */

enum { COM1 = 0x3f8, UART_LINE_STATUS = 5, UART_THR_EMPTY = 0x20 };

static void console_init(void)
{
    outb(COM1 + 3, 0x80); /* divisor latch: 115200 baud */
    outb(COM1 + 0, 1);
    outb(COM1 + 1, 0);
    outb(COM1 + 3, 0x03); /* 8 data bits, no parity, 1 stop bit */
}

static void put(char c)
{
    while (!(inb(COM1 + UART_LINE_STATUS) & UART_THR_EMPTY))
        ;
    outb(COM1, (u8)c);
}

static void put_count(u32 value)
{
    static const char digits[] = "0123456789abcdef";

    put('C'), put('N'), put('T'), put(' ');
    for (int shift = 28; shift >= 0; shift -= 4)
        put(digits[value >> shift & 15]);
    put('\n');
}

/* --------------------------------------------------- interrupts and the clock */

/* tiny.S: the only places where interrupts are taken. */
void wait_for_interrupt(void);
void allow_interrupt(void);

static void interrupts_init(void)
{
    /* Local APIC "virtual wire": on, LINT0 passes on the PIC's interrupts. */
    *(volatile u32 *)0xfee000f0 = 0x1ff;
    *(volatile u32 *)0xfee00350 = 0x700;

    /* Both 8259s: edge triggered, cascaded on line 2, vectors 0x20 and 0x28. */
    outb(0x20, 0x11), outb(0xa0, 0x11);
    outb(0x21, 0x20), outb(0xa1, 0x28);
    outb(0x21, 1 << 2), outb(0xa1, 2);
    outb(0x21, 0x01), outb(0xa1, 0x01);
    /* Enable IRQ 0 (timer), the cascade, and IRQ 9 (NIC). */
    outb(0x21, (u8)~(1 << 0 | 1 << 2));
    outb(0xa1, (u8)~(1 << 1));

    /* PIT channel 0, mode 2 (periodic). */
    outb(0x43, 0x34);
    outb(0x40, (u8)param_pit_divisor);
    outb(0x40, (u8)(param_pit_divisor >> 8));
}

/* --------------------------------------------------------------- test pages */

enum { FIRST_PAGE = 0x200000, PAGE = 4096 };

/*
 * A page carries the tick in its first word, and in its last word the tick plus
 * its own address. So a page that is stale, torn (half old, half new) or in the
 * wrong place is each found out.
 *
 * The loop is short because a KVM that emulates code without paging takes about
 * a microsecond for each instruction.
 */
static void tick(void)
{
    u32 old = state.tick, new = old + 1, bad = 0;
    u32 end = FIRST_PAGE + param_pages * PAGE;

    for (u32 at = FIRST_PAGE; at != end; at += PAGE) {
        volatile u32 *first = (volatile u32 *)at;
        volatile u32 *last = (volatile u32 *)(at + PAGE - 4);

        if (*first != old || *last != at + old)
            bad++;
        *first = new;
        *last = at + new;
    }
    if (old == 0)
        bad = 0; /* nothing had been written yet */
    state.tick = new;
    if (bad) {
        state.bad_pages += bad;
        put('X');
    }
    if (new % param_print_every == 0)
        put_count(new);
}

/*
 * Pages after the test pages, written once: memory in use that nobody changes,
 * so that whoever copies all of it has no zero pages to skip.
 */
static void fill(void)
{
    u32 at = FIRST_PAGE + param_pages * PAGE;

    for (u32 end = at + param_fill * PAGE; at != end; at += PAGE) {
        *(volatile u32 *)at = at;
        *(volatile u32 *)(at + PAGE - 4) = ~at;
    }
}

/* ---------------------------------------------------------------------- NIC */

/*
 * An NE2000: a National DP8390 network controller with 16 KiB or more of its
 * own packet memory, which the processor reaches only through one data port.
 * Register and bit names are those of the DP8390D datasheet; what the device
 * really does here is QEMU's hw/net/ne2000.c.
 *
 * Packet memory is addressed in 256-byte pages. We split it in two:
 *
 *   TX_PAGE .. RX_START     one outgoing frame
 *   RX_START .. RX_STOP     the receive ring, filled by the controller
 *
 * Ring pointers are page numbers. CURR is where the controller will put the
 * next frame, BNRY the last page we have given back; the controller never
 * crosses BNRY. BNRY trails our own read pointer by one page, because
 * BNRY == CURR would not tell an empty ring from a full one. Each frame starts
 * on a page, with a 4-byte header: receive status, page of the next frame,
 * length (16 bits, with these 4 bytes).
 *
 * Registers are in banks: bits 6..7 of CR select which one ports 1..15 show.
 */
enum {
    NIC = 0x300,       /* iobase= of the command line */
    NIC_DATA = 0x310,  /* the data port: "remote DMA" */
    NIC_RESET = 0x31f, /* reading it resets the controller */

    /* Bank 0 */
    CR = NIC + 0x0,
    PSTART = NIC + 0x1,
    PSTOP = NIC + 0x2,
    BNRY = NIC + 0x3,
    TPSR = NIC + 0x4,
    TBCR0 = NIC + 0x5,
    TBCR1 = NIC + 0x6,
    ISR = NIC + 0x7,
    RSAR0 = NIC + 0x8,
    RSAR1 = NIC + 0x9,
    RBCR0 = NIC + 0xa,
    RBCR1 = NIC + 0xb,
    RCR = NIC + 0xc,
    TCR = NIC + 0xd,
    DCR = NIC + 0xe,
    IMR = NIC + 0xf,

    /* Bank 1 */
    PAR0 = NIC + 0x1,
    CURR = NIC + 0x7,

    /* CR bits */
    CR_STP = 0x01,
    CR_STA = 0x02,
    CR_TXP = 0x04,
    CR_REMOTE_READ = 0x08,
    CR_REMOTE_WRITE = 0x10,
    CR_NO_DMA = 0x20, /* RD2: abort or complete remote DMA */
    CR_BANK1 = 0x40,

    /* ISR and IMR bits */
    ISR_PRX = 0x01, /* frame received */
    ISR_RXE = 0x04, /* frame received with an error */
    ISR_OVW = 0x10, /* the ring was full */
    ISR_RST = 0x80, /* controller is stopped */
    NIC_EVENTS = ISR_PRX | ISR_RXE | ISR_OVW,

    RSR_PRX = 0x01, /* status byte of a frame: received intact */

    TX_PAGE = 0x40,
    RX_START = 0x46, /* six pages hold the longest frame */
    RX_STOP = 0xc0,  /* QEMU's packet memory ends here (0x80 on the 1988 card) */

    FRAME_MIN = 60,
    FRAME_MAX = 1518,
};

/* A frame, after its ring header. Aligned so that header fields are too. */
struct ring_header {
    u8 status;
    u8 next_page;
    u16 length;
};

static struct {
    struct ring_header header;
    u8 frame[FRAME_MAX + 2];
} __attribute__((aligned(16))) buffer;

/* Point the data port at packet memory; `command` says in which direction. */
static void dma_start(u16 address, u16 length, u8 command)
{
    outb(RSAR0, (u8)address);
    outb(RSAR1, (u8)(address >> 8));
    outb(RBCR0, (u8)length);
    outb(RBCR1, (u8)(length >> 8));
    outb(CR, CR_STA | command);
}

/*
 * (Re)start the controller with an empty ring. Also the cure for OVW and for a
 * ring that makes no sense: what was in the ring is lost, which datagrams allow.
 */
static void nic_start(void)
{
    outb(CR, CR_STP | CR_NO_DMA);
    outb(DCR, 0x49); /* 16-bit data port, normal operation, FIFO threshold 8 */
    outb(RBCR0, 0);
    outb(RBCR1, 0);
    outb(RCR, 0x04); /* accept our own address and broadcasts */
    outb(TCR, 0x02); /* loopback until all is set up */
    outb(TPSR, TX_PAGE);
    outb(PSTART, RX_START);
    outb(PSTOP, RX_STOP);
    outb(BNRY, RX_START);
    outb(ISR, 0xff); /* forget old events */
    outb(IMR, NIC_EVENTS);

    outb(CR, CR_STP | CR_NO_DMA | CR_BANK1);
    for (int i = 0; i < 6; i++)
        outb((u16)(PAR0 + i), state.mac[i]);
    state.next_page = RX_START + 1;
    outb(CURR, RX_START + 1);

    outb(CR, CR_STA | CR_NO_DMA);
    outb(TCR, 0);
}

static void nic_init(void)
{
    u8 prom[12];

    if (inb(CR) == 0xff) /* nobody drives the bus: no NIC */
        return;
    outb(NIC_RESET, inb(NIC_RESET));
    if (!(inb(ISR) & ISR_RST))
        return;

    /* The station address is in a PROM at address 0, each byte twice. */
    outb(DCR, 0x49);
    dma_start(0, sizeof prom, CR_REMOTE_READ);
    insw(NIC_DATA, prom, sizeof prom / 2);
    for (int i = 0; i < 6; i++)
        state.mac[i] = prom[2 * i];

    state.nic_found = 1;
    nic_start();
}

/* Send the first `length` bytes of the frame buffer. */
static void nic_send(u32 length)
{
    /* The previous frame must have left. (QEMU sends within the CR write.) */
    for (u32 patience = 100000; inb(CR) & CR_TXP && patience; patience--)
        ;
    dma_start(TX_PAGE << 8, (u16)((length + 1) & ~1u), CR_REMOTE_WRITE);
    outsw(NIC_DATA, buffer.frame, (length + 1) / 2);
    outb(TPSR, TX_PAGE);
    outb(TBCR0, (u8)length);
    outb(TBCR1, (u8)(length >> 8));
    outb(CR, CR_STA | CR_TXP | CR_NO_DMA);
}

/* ------------------------------------------------------------------ service */

enum {
    ETHERNET = 14,
    IPV4_MIN = 20,
    UDP = 8,
    SERVICE_PORT = 7777,
    REQUEST_MIN = 24,
    DONE = 1,
    REPEATED = 2,
    REFUSED = 3,
};

static u16 be16(const u8 *at)
{
    return (u16)(at[0] << 8 | at[1]);
}

static u32 le32(const u8 *at)
{
    return at[0] | at[1] << 8 | at[2] << 16 | (u32)at[3] << 24;
}

static void put_le32(u8 *at, u32 value)
{
    for (int i = 0; i < 4; i++)
        at[i] = (u8)(value >> 8 * i);
}

static int same(const u8 *a, const volatile u8 *b, u32 length)
{
    for (u32 i = 0; i < length; i++)
        if (a[i] != b[i])
            return 0;
    return 1;
}

static void swap(u8 *a, u8 *b, u32 length)
{
    for (u32 i = 0; i < length; i++) {
        u8 byte = a[i];
        a[i] = b[i];
        b[i] = byte;
    }
}

/* Ethernet source becomes destination, and we become the source. */
static void return_to_sender(u8 *frame)
{
    for (int i = 0; i < 6; i++) {
        frame[i] = frame[6 + i];
        frame[6 + i] = state.mac[i];
    }
}

/* "Who has param_ipv4?": turn the question into the answer. Returns 1 if so. */
static int answer_arp(u8 *frame, u32 length)
{
    /* Hardware Ethernet, protocol IPv4, address lengths 6 and 4, request. */
    static const u8 request[8] = {0, 1, 8, 0, 6, 4, 0, 1};
    u8 *arp = frame + ETHERNET;
    u8 *sender = arp + 8, *target = arp + 18; /* each: MAC 6, IPv4 4 */

    if (length < ETHERNET + 28 || be16(frame + 12) != 0x0806 || !same(arp, request, 8) ||
        !same(target + 6, param_ipv4, 4))
        return 0;
    return_to_sender(frame);
    arp[7] = 2; /* reply */
    swap(sender, target, 10);
    for (int i = 0; i < 6; i++)
        sender[i] = state.mac[i];
    return 1;
}

/*
 * A request of the counter service: turn it into the reply, in place, same
 * length. Returns 1 if it was one. The layout is in testing/guests/README.md.
 *
 * Swapping the addresses leaves the IPv4 header checksum right; the UDP checksum
 * becomes 0, "not used".
 */
static int answer_request(u8 *frame, u32 length)
{
    u8 *ip = frame + ETHERNET;
    u32 ip_header = (ip[0] & 15u) * 4, ip_length = be16(ip + 2);
    u8 *udp = ip + ip_header, *payload = udp + UDP;
    u32 seq, status;

    if (length < ETHERNET + IPV4_MIN || be16(frame + 12) != 0x0800 || ip[0] >> 4 != 4 ||
        ip_header < IPV4_MIN || ip_length > length - ETHERNET ||
        ip_length < ip_header + UDP + REQUEST_MIN)
        return 0;
    if (ip[9] != 17 || be16(ip + 6) & 0x3fff) /* UDP, and not a fragment */
        return 0;
    if (be16(udp + 2) != SERVICE_PORT || be16(udp + 4) != ip_length - ip_header ||
        !same(payload, (const u8 *)"AIQ1", 4))
        return 0;

    seq = le32(payload + 4);
    if (seq == state.count + 1) {
        state.count = seq;
        status = DONE;
    } else {
        status = seq == state.count ? REPEATED : REFUSED;
    }
    put_le32(payload + 8, state.count);
    put_le32(payload + 12, state.tick);
    put_le32(payload + 16, state.bad_pages);
    put_le32(payload + 20, status);

    return_to_sender(frame);
    swap(ip + 12, ip + 16, 4);
    swap(udp, udp + 2, 2);
    udp[6] = udp[7] = 0;
    return 1;
}

static u8 nic_current_page(void)
{
    u8 page;

    outb(CR, CR_STA | CR_NO_DMA | CR_BANK1);
    page = inb(CURR);
    outb(CR, CR_STA | CR_NO_DMA);
    return page;
}

/*
 * Take one frame from the ring and answer it. Returns 0 when the ring made no
 * sense, 1 otherwise.
 */
static int nic_take_frame(void)
{
    u32 page = state.next_page, next, length;

    /*
     * One remote read serves for header and frame: ask for the most there can
     * be, stop when the frame is in. The read wraps from RX_STOP to RX_START by
     * itself, as the frame did.
     */
    dma_start((u16)(page << 8), sizeof buffer, CR_REMOTE_READ);
    insw(NIC_DATA, &buffer.header, sizeof buffer.header / 2);
    next = buffer.header.next_page;
    length = buffer.header.length - sizeof buffer.header;
    if (!(buffer.header.status & RSR_PRX) || next < RX_START || next >= RX_STOP ||
        length < FRAME_MIN || length > FRAME_MAX)
        return 0;
    insw(NIC_DATA, buffer.frame, (length + 1) / 2);

    /* Hand the pages back before the reply, so that the ring is free sooner. */
    outb(CR, CR_STA | CR_NO_DMA);
    state.next_page = next;
    outb(BNRY, (u8)(next == RX_START ? RX_STOP - 1 : next - 1));
    state.frames++;

    if (answer_request(buffer.frame, length) || answer_arp(buffer.frame, length))
        nic_send(length);
    return 1;
}

/*
 * Handle everything the NIC has for us, or as much as there is time for.
 *
 * Events are acknowledged before the ring is emptied: a frame that arrives in
 * between raises a new event (and a new edge on IRQ 9), so none is forgotten.
 *
 * If a tick falls due first we return with nic_due set and carry on after it:
 * a flood of frames slows the clock down but cannot stop it.
 */
static void nic_service(void)
{
    u8 events;

    state.nic_due = 0;
    while ((events = inb(ISR)) & NIC_EVENTS || state.next_page != nic_current_page()) {
        outb(ISR, events);
        if (state.tick_due) {
            state.nic_due = 1;
            return;
        }
        if (events & ISR_OVW) {
            state.nic_resets++;
            nic_start();
            continue;
        }
        while (!state.tick_due && state.next_page != nic_current_page()) {
            if (!nic_take_frame()) {
                state.nic_resets++;
                nic_start();
            }
            allow_interrupt(); /* lets the timer set tick_due */
        }
    }
}

/* ---------------------------------------------------------------- main loop */

void tiny_main(void);

void tiny_main(void)
{
    for (u32 i = 0; i < sizeof state / 4; i++)
        ((volatile u32 *)&state)[i] = 0; /* RAM survives a system_reset */
    console_init();
    fill();
    interrupts_init();
    nic_init();

    for (;;) {
        /*
         * Interrupts are off while we look for work, so one that arrives in
         * between still ends the wait.
         */
        if (!state.tick_due && !state.nic_due)
            wait_for_interrupt();

        if (state.nic_due)
            nic_service();
        if (state.tick_due) {
            state.tick_due = 0;
            tick();
            /* Look even without an interrupt: one edge lost must not be the end. */
            if (state.nic_found)
                state.nic_due = 1;
        }
    }
}
