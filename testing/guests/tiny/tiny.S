/*
 * The tiny guest, part 1: everything that has to be assembly.
 *
 * The image replaces the PC BIOS (`-bios tiny.bin`): 64 KiB, visible at
 * 0xF0000 and again just below 4 GiB. There is no operating system, no paging
 * and no BIOS service, so it runs on any KVM that can run 32-bit code at all,
 * and it is up within a tenth of a second.
 *
 * This file holds the parameter block, the descriptor tables, the way from the
 * reset vector into 32-bit mode, and the interrupt stubs. tiny.c does the rest.
 * tiny.ld places both.
 *
 * ROM (read-only, so nothing in it may need writing):
 *   0xF0000  parameters at fixed offsets, then tables and code
 *   0xFFFF0  reset vector
 * RAM:
 *   0x00600  struct state (tiny.c), at a fixed address so that a test can read
 *            it from outside, e.g. with QMP pmemsave
 *   0x01000  top of the stack. It shares page 0 with the state on purpose: an
 *            idle tick dirties this page and the test pages, nothing more
 *   0x01000  .bss: the frame buffer, touched only by network traffic
 *   2 MiB    the test pages
 */

        .set    CODE, 0x08              /* selectors into the GDT below */
        .set    DATA, 0x10
        .set    STATE, 0x600            /* keep in step with tiny.ld */
        .set    TICK_DUE, STATE + 0x18  /* keep in step with tiny.c */
        .set    NIC_DUE, STATE + 0x1c
        .set    STACK_TOP, 0x1000

        .section .rom, "ax"
        .globl  rom
rom:
        /*
         * Parameters. A test patches these bytes in a copy of tiny.bin; the
         * offsets are an interface (testing/guests/README.md), do not move them.
         */
        .ascii  "TINYGUEST 1"
        .org    0x10
        .globl  param_pages, param_pit_divisor, param_print_every, param_ipv4, param_fill
param_pages:
        .long   64                      /* 0x10 pages rewritten each tick */
param_pit_divisor:
        .word   11932                   /* 0x14 1193182 Hz / 11932 = 100 Hz */
        .word   0
param_print_every:
        .long   1                       /* 0x18 print CNT every n ticks */
param_ipv4:
        .byte   10, 77, 0, 10           /* 0x1c address ARP answers for */
param_fill:
        .long   0                       /* 0x20 pages written once, at the start */

        /*
         * Flat descriptors. The low type bit, "accessed", is already set
         * (0x9b, 0x93 rather than 0x9a, 0x92). The processor sets it when it
         * loads a segment; this table is in ROM, and under KVM the write to
         * read-only memory is retried for ever. TCG does not care.
         */
        .org    0x40
        .balign 8
gdt:
        .quad   0
        .quad   0x00cf9b000000ffff      /* CODE: 0..4 GiB, 32-bit */
        .quad   0x00cf93000000ffff      /* DATA: 0..4 GiB */
gdt_pointer:
        .word   . - gdt - 1
        .long   gdt

        /* An interrupt gate to a handler in this section (0xF0000 + x). */
        .macro  gate handler
        .word   \handler - rom
        .word   CODE
        .byte   0, 0x8e
        .word   0x000f
        .endm

        .balign 8
idt:
        .rept   0x20                    /* processor exceptions */
        gate    on_fault
        .endr
        gate    on_tick                 /* 0x20: IRQ 0, the timer */
        .rept   8
        gate    on_spurious             /* 0x21..0x28 */
        .endr
        gate    on_nic                  /* 0x29: IRQ 9, the NIC */
        .rept   5
        gate    on_spurious             /* 0x2a..0x2e */
        .endr
        gate    on_spurious_slave       /* 0x2f: IRQ 15 */
idt_pointer:
        .word   . - idt - 1
        .long   idt

        /* From the reset vector: real mode, CS base 0xF0000, nothing set up. */
        .code16
start16:
        cli
        cld
        lgdtl   %cs:gdt_pointer - rom
        movl    %cr0, %eax
        orb     $1, %al                 /* PE */
        movl    %eax, %cr0
        ljmpl   $CODE, $start32

        .code32
start32:
        movw    $DATA, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %fs
        movw    %ax, %gs
        movw    %ax, %ss
        movl    $STACK_TOP, %esp
        lidt    idt_pointer
        call    tiny_main               /* never returns */
        jmp     on_fault

        /*
         * Interrupts. The program runs with interrupts off; they are taken only
         * inside the two functions here, which open the window. A handler notes
         * what happened, acknowledges the interrupt controllers, and then
         * returns straight to the caller of the function that was interrupted:
         * it throws away the interrupt frame (EIP, CS, EFLAGS) and does a plain
         * `ret`, with interrupts off again because a gate turns them off.
         *
         * No `iret`, for a reason: some KVMs run code without paging in their
         * instruction emulator, which knows iret in real mode only.
         */
        .globl  wait_for_interrupt, allow_interrupt
wait_for_interrupt:                     /* sleep until one has been handled */
        sti                             /* takes effect after the hlt began */
1:      hlt
        jmp     1b

allow_interrupt:                        /* handle one if one is pending */
        sti
        nop                             /* here */
        nop
        cli
        ret

        .set    INTERRUPT_FRAME, 12

on_tick:
        movl    $1, TICK_DUE
        movb    $0x20, %al
        outb    %al, $0x20              /* end of interrupt, master PIC */
        addl    $INTERRUPT_FRAME, %esp
        ret

on_nic:
        movl    $1, NIC_DUE
        movb    $0x20, %al
        outb    %al, $0xa0              /* slave PIC first, then its master */
        outb    %al, $0x20
        addl    $INTERRUPT_FRAME, %esp
        ret

        /*
         * All other lines are masked. A spurious interrupt wants no EOI, but one
         * from the slave PIC does hold its line on the master.
         */
on_spurious_slave:
        movb    $0x20, %al
        outb    %al, $0x20
on_spurious:
        addl    $INTERRUPT_FRAME, %esp
        ret

        /* A fault is a bug in this program: say so on COM1 and stop for good. */
on_fault:
        movw    $0x3f8, %dx
        movb    $'!', %al
        outb    %al, %dx
1:      cli
        hlt
        jmp     1b

        .section .reset, "ax"
        .code16
        ljmp    $0xF000, $(start16 - rom)

        .section .note.GNU-stack, "", @progbits
