/*
 * child.h
 *		Sub-sagas: a step that is a saga of its own.
 *
 * The child is an ordinary saga that knows its parent.  Its id follows from
 * the parent's and the step's, so that starting it again is starting the same
 * one; all else between the two travels through saga.inbox, as they may belong
 * to different coordinators.
 */
#ifndef SAGA_CHILD_H
#define SAGA_CHILD_H

#include "postgres.h"

#include "utils/jsonb.h"
#include "utils/uuid.h"

#include "definition.h"

/* Parents above a saga, at most (SGL01). */
#define SAGA_MAX_DEPTH	32

/* What the two tell each other: verbs of saga.inbox. */
#define SAGA_CHILD_ENDED	"child_ended"	/* to the parent, about a step */
#define SAGA_UNDO_CHILD		"undo_child"	/* to the child */

extern void saga_child_id(const pg_uuid_t *parent, const char *step, pg_uuid_t *id);

/* ---- in an executor, in the transaction of the step's call ---- */

/* Start the child of a step, unless it is there already. */
extern void saga_child_start(const pg_uuid_t *parent, const char *step,
							 const SagaDefinition *def, const char *child,
							 Jsonb *input);

/* ---- in a coordinator ---- */
struct SagaRun;
struct SagaCallOut;
struct SagaCommand;
struct SagaInboxRow;
struct Known;

/* The executor has started the child: the call is taken on, or over already. */
extern void saga_child_started(struct SagaCallOut *call);

/* Undo the child of a step, or find out what has become of it. */
extern void saga_child_undo(struct SagaRun *run, struct SagaCallOut *call);
extern void saga_child_claim(struct SagaRun *run, struct SagaCallOut *call,
							 SagaOp target);

/* Letters of the inbox; false: there is nobody to take it. */
extern void saga_child_ended(struct SagaRun *run, const char *step);
extern void saga_undo_child(struct SagaRun *run);

/* Before the turn is written: what those who end in it have to tell. */
extern void saga_child_tell(struct SagaRun *run);

#endif							/* SAGA_CHILD_H */
