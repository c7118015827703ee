/* The entry point: hand the initial stack to pc_main. */
#if defined(__x86_64__)
__asm__ (".text\n"
         ".globl _start\n"
         ".type _start,@function\n"
         "_start:\n"
         "  xor %ebp, %ebp\n"
         "  mov %rsp, %rdi\n"
         "  and $-16, %rsp\n"
         "  call pc_main\n"
         "  hlt\n");
#elif defined(__aarch64__)
__asm__ (".text\n"
         ".globl _start\n"
         ".type _start,%function\n"
         "_start:\n"
         "  mov x29, #0\n"
         "  mov x30, #0\n"
         "  mov x0, sp\n"
         "  and sp, x0, #-16\n"
         "  bl pc_main\n"
         "  brk #0\n");
#endif
