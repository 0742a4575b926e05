/*
 * saga.h
 *		What every process of saga shares in code: the vocabulary, the entry
 *		points the postmaster calls, the worker skeleton.
 *
 * Words, and one thing for each: a *definition* is an immutable version of a
 * description of steps; a *saga* (instance) is one run of it; a *step* has an
 * *action* and perhaps a *compensation*; an *attempt* is one try of either; the
 * *pivot* is the step after which a saga only goes forward; the *log* is the
 * append-only truth, the instance row what listing needs of it; the *inbox*
 * holds operators' commands; a *participant* is a foreign server that steps
 * call, through a *connector*; the *barrier* is the table there that makes a
 * call take effect once.
 */
#ifndef SAGA_H
#define SAGA_H

#include "postgres.h"

#include "shmem.h"

#define SAGA_EXTENSION "saga"

/* ---- worker.c: the skeleton of every worker ---- */

/* Signals, slot, database; exits quietly where the extension is absent. */
extern SagaWorkerSlot *saga_worker_start(Datum main_arg, bool probe);

/*
 * Begin and end one transaction of a worker: extension lock first (so that
 * DROP EXTENSION and we never deadlock), SPI, snapshot, activity.  Returns
 * false, with no transaction open, when the extension is gone or is being
 * dropped; the worker then leaves.
 */
extern bool saga_worker_begin(const char *activity);
extern void saga_worker_look_again(void);
extern void saga_worker_commit(bool flush);
extern void saga_worker_abort(void);

/* The same without SPI and snapshot, for who takes them himself, later. */
extern bool saga_worker_enter(const char *activity);
extern void saga_worker_leave(bool flush);

extern void saga_worker_interrupts(void);
extern volatile bool saga_worker_reloaded;	/* set by a reload, cleared by its
											 * reader */
extern TimestampTz saga_now(void);

/* Settings no role or database setting may bend in a worker. */
extern void saga_worker_pin_settings(void);

/* ---- entry points ---- */
extern PGDLLEXPORT void saga_launcher_main(Datum main_arg);
extern PGDLLEXPORT void saga_coordinator_main(Datum main_arg);
extern PGDLLEXPORT void saga_executor_main(Datum main_arg);
extern PGDLLEXPORT void saga_projector_main(Datum main_arg);
extern PGDLLEXPORT void saga_filler_main(Datum main_arg);

#endif							/* SAGA_H */
