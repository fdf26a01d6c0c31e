#include "hold.h"
#include "keeper.h"

#include <stdio.h>
#include <string.h>

#ifndef INSULA_BUILD
#define INSULA_BUILD "unknown"
#endif

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "porter") == 0)
        return porter_main(argc - 2, argv + 2);
    if (argc > 1 && strcmp(argv[1], "inner") == 0)
        return inner_main(argc - 2, argv + 2);
    if (argc > 1 && strcmp(argv[1], "hold") == 0)
        return hold_main(argc - 2, argv + 2);
    if (argc > 1 && strcmp(argv[1], "forward") == 0)
        return forward_main(argc - 2, argv + 2);
    if (argc > 1 && strcmp(argv[1], "enter") == 0)
        return enter_main(argc - 2, argv + 2);
    if (argc > 1 && strcmp(argv[1], "bare") == 0)
        return bare_main(argc - 2, argv + 2);
    if (argc > 1 && strcmp(argv[1], "--version") == 0) {
        dprintf(1, "insula-keeper %s\n", INSULA_BUILD);
        return 0;
    }
    dprintf(2, "usage: insula-keeper porter … -- JAIL-COMMAND…\n       insula-keeper inner … -- QEMU-COMMAND…\n"
               "       insula-keeper hold …\n       insula-keeper forward …\n       insula-keeper enter … -- COMMAND…\n       insula-keeper bare … -- COMMAND…\n");
    return 2;
}
