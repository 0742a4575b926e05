/*
 * amend.h
 *		What an operator changes in a live saga: the version of its definition,
 *		the options of its steps.
 */
#ifndef SAGA_AMEND_H
#define SAGA_AMEND_H

#include "postgres.h"

#include "utils/jsonb.h"

/* In a session: 22023 unless these are options of a step. */
extern void saga_amend_check_options(Jsonb *options);

/* ---- in a coordinator ---- */
struct SagaRun;
struct SagaInboxRow;

/* Options of a step from here on; also while its log is read back. */
extern void saga_amend_apply_options(struct SagaRun *run, int step, const Jsonb *options);

/* The time-out of a step's call, in milliseconds: its own, or that of the call. */
extern int	saga_amend_timeout(const struct SagaRun *run, int step, bool undo, int timeout_ms);

/*
 * Go on with another version.  False: not at this moment, as a call is out.
 */
extern bool saga_amend_migrate(struct SagaRun *run, int64 definition_id,
							   const char *actor, const char *note);

/* Log what an operator has set. */
extern void saga_amend_set_options(struct SagaRun *run, const char *step, const Jsonb *options,
								   const char *actor, const char *note);

#endif							/* SAGA_AMEND_H */
