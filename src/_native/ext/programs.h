#ifndef PC_PROGRAMS_H
#define PC_PROGRAMS_H

extern const char pcx_launcher_start[] __attribute__ ((visibility ("hidden")));
extern const char pcx_launcher_end[] __attribute__ ((visibility ("hidden")));
extern const char pcx_agent_start[] __attribute__ ((visibility ("hidden")));
extern const char pcx_agent_end[] __attribute__ ((visibility ("hidden")));

#endif
