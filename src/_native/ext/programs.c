/* The launcher and the agent, embedded in the extension: no file is looked up at run time. */
#include "programs.h"

#define EMBED(symbol, path)                  \
  __asm__ (".section .rodata\n"              \
           ".balign 16\n"                    \
           ".globl pcx_" #symbol "_start\n"  \
           ".hidden pcx_" #symbol "_start\n" \
           ".globl pcx_" #symbol "_end\n"    \
           ".hidden pcx_" #symbol "_end\n"   \
           "pcx_" #symbol "_start:\n"        \
           ".incbin \"" path "\"\n"          \
           "pcx_" #symbol "_end:\n"          \
           ".previous\n")

EMBED (launcher, PCX_LAUNCHER_PATH);
EMBED (agent, PCX_AGENT_PATH);
