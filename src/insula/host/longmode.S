# The proof's guest: a ROM of 64 KiB that starts at the reset vector, without any firmware, and does what a kernel does.
#
# It enters 64-bit mode, then in stages, whose number is kept in %ebx:
#   1 64-bit arithmetic     4 SSE                      7 time stamps advance
#   2 an invalid opcode     5 model-specific registers 8 CPUID says long mode
#   3 a page fault          6 user mode and back       9 a timer interrupt wakes a halted CPU
# and writes 0x2a to port 0x501 (QEMU's isa-debug-exit, which ends QEMU with status 0x55), or the number of the stage that failed.
#
# longmode.hex holds the assembled bytes (without the padding and the jump at the reset vector);
# tests/unit/engines/test_accelerators.py assembles this file and compares:
#   as --64 longmode.S -o longmode.o && objcopy -O binary -j .text longmode.o longmode.bin
# The descriptors in the GDT are marked as accessed, because the CPU would else write to the ROM.

.equ PML4, 0x10000
.equ PDPT, 0x11000
.equ PD0,  0x12000              # the first GiB, in pages of 2 MiB
.equ PD3,  0x13000              # the fourth, for the APIC alone
.equ IDT,  0x15000

.code16
.globl _start
_start:
  cli
  cs lgdtl gdtr-_start
  movl %cr0,%eax
  orb $1,%al
  movl %eax,%cr0
  ljmpl $8,$(0xF0000+pm-_start)
.code32
pm:
  movw $16,%ax
  movw %ax,%ds
  movw %ax,%es
  movw %ax,%ss
  movl $0x7000,%esp
  # clear 0x10000..0x18000
  movl $PML4,%edi
  movl $0x2000,%ecx
  xorl %eax,%eax
  cld
  rep stosl
  movl $(PDPT+7),PML4
  movl $(PD0+7),PDPT
  movl $(PD3+7),PDPT+24
  # 512 2MB pages, user
  movl $PD0,%edi
  movl $0x87,%eax
1: movl %eax,(%edi)
  addl $8,%edi
  addl $0x200000,%eax
  cmpl $PD3,%edi
  jne 1b
  # unmap 2MB page at 4MB (index 2) for #PF
  movl $0,PD0+16
  # APIC page: 0xFEE00000 = index 0x1F7 of PD3; cache disabled
  movl $0xFEE0009B,PD3+0x1F7*8
  movl %cr4,%eax
  orl $0x620,%eax     # PAE, OSFXSR, OSXMMEXCPT
  movl %eax,%cr4
  movl $PML4,%eax
  movl %eax,%cr3
  movl $0xC0000080,%ecx
  rdmsr
  orl $0x901,%eax     # LME, NXE, SCE
  wrmsr
  movl %cr0,%eax
  orl $0x80010002,%eax  # PG WP MP
  andl $0xfffffffb,%eax # EM off
  movl %eax,%cr0
  ljmpl $24,$(0xF0000+lm-_start)
.code64
lm:
  movl $1,%ebx
  # a thousand steps of a linear congruential generator, to a known number
  movabsq $6364136223846793005,%rax
  movabsq $1442695040888963407,%rsi
  movq $1,%r9
  movl $1000,%ecx
1: imulq %rax,%r9
  addq %rsi,%r9
  loop 1b
  movabsq $0xf517ff66df0cbea9,%rdx
  cmpq %r9,%rdx
  jne fail
  # IDT: 256 entries all -> fail
  movl $IDT,%edi
  movl $64,%ecx
  leaq fail(%rip),%rax
1: call gate
  loop 1b
  movl $(IDT+6*16),%edi
  leaq h_ud(%rip),%rax
  call gate
  movl $(IDT+14*16),%edi
  leaq h_pf(%rip),%rax
  call gate
  movl $(IDT+0x30*16),%edi
  leaq h_timer(%rip),%rax
  call gate
  lidt idtr(%rip)
  movl $2,%ebx
  ud2
  cmpl $0x77,%r8d
  jne fail
  movl $3,%ebx
  # page fault
  movl $0x400000,%esi
  movl $0x1234,(%rsi)
  cmpl $0x1234,(%rsi)
  jne fail
  cmpl $0x78,%r8d
  jne fail
  movl $4,%ebx
  # SSE
  movq %r9,%xmm0
  paddq %xmm0,%xmm0
  movq %xmm0,%rax
  leaq (%r9,%r9),%rdx
  cmpq %rax,%rdx
  jne fail
  movl $5,%ebx
  # model-specific registers
  movl $0xC0000082,%ecx
  leaq sysentry(%rip),%rax
  xorl %edx,%edx
  wrmsr
  rdmsr
  leaq sysentry(%rip),%rsi
  cmpl %eax,%esi
  jne fail
  movl $0xC0000081,%ecx   # STAR: kernel cs 0x18 (ss 0x20), user base 0x28 -> cs 0x38|3 ss 0x30|3
  xorl %eax,%eax
  movl $0x002B0018,%edx
  wrmsr
  movl $0xC0000084,%ecx
  xorl %eax,%eax
  xorl %edx,%edx
  wrmsr
  movl $6,%ebx
  # ring 3 by sysret, back by syscall
  leaq user(%rip),%rcx
  movl $2,%r11d
  movq %rsp,%r15
  sysretq
back:
  movq %r15,%rsp
  movl $7,%ebx
  cmpl $0x55,%r12d
  jne fail
  # rdtsc advances
  rdtsc
  movl %eax,%esi
  movl $10000,%ecx
1: loop 1b
  rdtsc
  cmpl %eax,%esi
  je fail
  movl $8,%ebx
  # cpuid: long mode present
  movl $0x80000001,%eax
  cpuid
  movl $8,%ebx
  btl $29,%edx
  jnc fail
  movl $9,%ebx
  # APIC timer
  movl $0xFEE00000,%esi
  movl $0x1FF,0xF0(%rsi)
  movl $0x30,0x320(%rsi)
  movl $0xB,0x3E0(%rsi)
  movl $100000,0x380(%rsi)
  xorl %r8d,%r8d
  sti
1: hlt
  cmpl $0x79,%r8d
  jne 1b
  cli
  movl $0x2a,%ebx
fail:
  cli
  movl %ebx,%eax
  movw $0x501,%dx
  outl %eax,%dx
1: hlt
  jmp 1b
gate: # rdi entry, rax handler; advances rdi
  movw %ax,(%rdi)
  movw $0x18,2(%rdi)
  movw $0x8E00,4(%rdi)
  movq %rax,%rdx
  shrq $16,%rdx
  movw %dx,6(%rdi)
  movl $0,8(%rdi)
  addl $16,%edi
  ret
h_ud:
  movl $0x77,%r8d
  addq $2,(%rsp)
  iretq
h_pf:
  addq $8,%rsp
  movl $0x78,%r8d
  movl $0x400087,PD0+16
  iretq
h_timer:
  movl $0x79,%r8d
  movl $0xFEE00000,%esi
  movl $0,0xB0(%rsi)
  iretq
user:
  movl $0x55,%r12d
  syscall
sysentry:
  jmp back
.balign 8, 0xCC  # named, because assemblers fill differently by themselves
gdt:
  .quad 0
  .quad 0x00CF9B000000FFFF  # 08 code32
  .quad 0x00CF93000000FFFF  # 10 data
  .quad 0x00AF9B000000FFFF  # 18 code64
  .quad 0x00CF93000000FFFF  # 20 data
  .quad 0                   # 28 user code32
  .quad 0x00CFF3000000FFFF  # 30 user data
  .quad 0x00AFFB000000FFFF  # 38 user code64
gdtr: .word 63
  .long 0xF0000+gdt-_start
idtr: .word 0x3FF
  .quad IDT
.org 0xFFF0
.code16
  ljmp $0xF000,$0
.org 0x10000
