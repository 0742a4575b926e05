/*
 * two_phase.h
 *		Two-phase commit: a definition compiled into another graph, which the
 *		same machine runs.
 *
 * For each server one branch: its node "prepare_<server>" runs all steps of
 * that server in one transaction and prepares it, its compensation rolls the
 * prepared transaction back.  The node "decide" is the pivot: it runs the
 * local steps in one transaction, whose commit is the decision.  After it,
 * "commit_<server>" commits each branch, tried until it succeeds.
 */
#ifndef SAGA_TWO_PHASE_H
#define SAGA_TWO_PHASE_H

#include "postgres.h"

#include "compile.h"
#include "connector.h"
#include "template.h"

/* Steps of one server in one definition: they are sent all at once. */
#define SAGA_MAX_BRANCH_STEPS	50

/* Name of the pivot, whose DONE in the log is the decision to commit. */
#define SAGA_DECIDE_STEP		"decide"

/* ---- two_phase.c ---- */

/*
 * If the definition allows two-phase commit: add a fault for all that it
 * cannot do and, if there are no faults at all, set c->def->two_phase.  After
 * all texts are compiled.
 */
extern void saga_two_phase_compile(SagaCompile *c);

/* Like saga_template_bind(), of all parts: each has its own step's names. */
extern void saga_call_bind(const SagaCall *call, SagaValues *values,
						   char **out);

/* In an executor: the names of earlier steps of the same decision. */
extern void saga_call_bind_results(const SagaCall *part, int node,
								   Jsonb *results, char **values);

/* An object (NULL: none yet) with one more result, in the current context. */
extern Jsonb *saga_results_add(Jsonb *results, const char *name, Jsonb *result);

/* Mode, key and gid of the request that a call of a branch becomes. */
extern void saga_branch_request(const pg_uuid_t *saga_id, const SagaCall *call,
								SagaOp op, SagaRequest *request);

/* What an answer means, where two-phase commit gives it another meaning. */
extern SagaAnswerKind saga_branch_answer(const SagaCall *call, SagaOp op,
										 SagaAnswerKind kind);

/*
 * The name of a prepared transaction at its participant (palloc'd), and the
 * beginning that all those of this database have.
 */
extern char *saga_prepared_gid(const pg_uuid_t *saga_id, const char *label,
							   int branch);
extern char *saga_prepared_prefix(void);

/* The saga a gid belongs to; false if it is none of ours. */
extern bool saga_prepared_saga(const char *gid, pg_uuid_t *saga_id);

#endif							/* SAGA_TWO_PHASE_H */
