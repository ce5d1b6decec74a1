/* The modes of the helper and the descriptors they are given. Included by the helper's files only. */
#ifndef PYC_MONITOR_H
#define PYC_MONITOR_H

enum {
    KEEP_REQUESTS = 3,
    KEEP_CLEANER = 4, /* write end: closes with the keeper; 5 is one more, whose other end the program has */
    CLEAN_IDS = 3,
    CLEAN_RUNS = 4,
    CLEAN_LOCK = 5,
    CLEAN_KEEPER = 6,  /* read end of the same pipe */
    CLEAN_CGROUPS = 8, /* 7 closes with the cleaner, as the keeper's 5 does with that: then all is done */
    WAIT_MS = 5000,    /* for processes that are being killed */
};

int keep(void);              /* keep.c */
int clean(const char *name); /* clean.c */
int init(char **argv);       /* init.c */

#endif
