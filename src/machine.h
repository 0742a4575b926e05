/*
 * machine.h
 *		The saga state machine.  Pure (see pure.h): (state, event, now) ->
 *		(state, log records, commands).
 *
 * All that decides what happens next lives in machine*.c.  Its only output is
 * records and commands; its state changes only by saga_machine_apply() of a
 * record it has just emitted, or of one read back from the log.  So the state
 * is a fold of the log by construction, and recovery is: init, apply every
 * record, resume.  (Ephemeral facts, such as "a call is in flight", are not in
 * records; saga_machine_resume() starts those calls again, and the barrier at
 * the participant or the outcome table here makes that harmless.)
 *
 * Payloads (results, messages) are not the machine's: a record names the
 * answer it came from and the caller stores the payload with it.
 */
#ifndef SAGA_MACHINE_H
#define SAGA_MACHINE_H

#include "graph.h"

/* Pseudo-nodes: local SQL the definition attaches to the saga itself. */
#define SAGA_NODE_END		(-1)	/* on_completed / on_compensated */
#define SAGA_NODE_ON_STUCK	(-2)	/* on_stuck */
#define SAGA_NO_NODE		(-3)

typedef enum SagaStateName
{
	SAGA_PENDING,				/* started, not yet seen by a coordinator */
	SAGA_RUNNING,
	SAGA_WAITING,				/* nothing to do before a time or a signal */
	SAGA_PAUSED,
	SAGA_STUCK,
	SAGA_COMPLETED,
	SAGA_COMPENSATED,
	SAGA_TERMINATED,
} SagaStateName;

#define SAGA_STATE_ENDED(s) ((s) >= SAGA_COMPLETED)

typedef enum SagaDirection
{
	SAGA_FORWARD,
	SAGA_UNDO,
} SagaDirection;

typedef enum SagaCause
{
	SAGA_CAUSE_NONE,
	SAGA_CAUSE_DECLINED,		/* a step was declined, or its attempts ended */
	SAGA_CAUSE_CANCELLED,
	SAGA_CAUSE_DEADLINE,
	SAGA_CAUSE_ABORTED,
	SAGA_CAUSE_OPERATOR,		/* terminated by a verb */
} SagaCause;

/* What a participant (or an executor) said.  The five kinds of API.md 2. */
typedef enum SagaAnswerKind
{
	SAGA_ANSWER_DONE,
	SAGA_ANSWER_DECLINED,
	SAGA_ANSWER_TRANSIENT,		/* known not to have happened; try again */
	SAGA_ANSWER_BROKEN,			/* configuration; known not to have happened */
	SAGA_ANSWER_UNKNOWN,		/* sent, no answer */

	/*
	 * Only for SAGA_OP_CLAIM: the key was free and is now refused for ever,
	 * so the call never happened and never will.
	 */
	SAGA_ANSWER_REFUSED,

	/* The call was taken on; its answer comes later, as EVENT_COMPLETED. */
	SAGA_ANSWER_ACCEPTED,
} SagaAnswerKind;

typedef enum SagaOp
{
	SAGA_OP_ACTION,
	SAGA_OP_UNDO,				/* run the compensation */
	SAGA_OP_HOOK,				/* only with a pseudo-node */

	/*
	 * Ask the participant whether the call (of the step's current operation:
	 * action when forward, compensation in undo) happened, and forbid it if it
	 * did not.  Answered by DONE (it had), REFUSED, TRANSIENT, BROKEN or
	 * UNKNOWN.
	 */
	SAGA_OP_CLAIM,

	/*
	 * Evaluate one of the node's expressions (which: SagaEval).  Has no effect
	 * and no outcome row; answered by DONE with the event's 'value', or like
	 * a local action that failed.
	 */
	SAGA_OP_EVAL,
} SagaOp;

/* What is evaluated, and what the answer's 'value' is. */
typedef enum SagaEval
{
	SAGA_EVAL_CONDITION,		/* 1: go on; 0: pass the node over */
	SAGA_EVAL_CASES,			/* BRANCH: the case, from 0; -1: none */
	SAGA_EVAL_ITEMS,			/* EACH: how many (payload: the elements) */
	SAGA_EVAL_WHILE,			/* LOOP: 1: once more; 0: done */
	SAGA_EVAL_TIME,				/* SLEEP: until when */
} SagaEval;

typedef enum SagaVerb
{
	SAGA_VERB_CANCEL,
	SAGA_VERB_TERMINATE,
	SAGA_VERB_PAUSE,
	SAGA_VERB_RESUME,
	SAGA_VERB_RETRY_STEP,
	SAGA_VERB_SKIP_STEP,
	SAGA_VERB_RERUN_FROM,		/* node: it and all that follows it, anew */
	SAGA_VERB_SET_DEADLINE,		/* value: SagaTime, or NEVER */
	SAGA_VERB_BREAKPOINT,		/* node: pause before it starts; value 0:
								 * take it away */
	SAGA_VERB_UNDO_COMPLETED,	/* of a child that has completed, by its
								 * parent's undo */
} SagaVerb;

/* Why a saga waits for an operator. */
typedef enum SagaStuckReason
{
	SAGA_STUCK_NONE,
	SAGA_STUCK_DECLINED,		/* declined after the pivot, or on_failure */
	SAGA_STUCK_BROKEN,			/* three broken answers */
	SAGA_STUCK_UNDO_FAILS,		/* ten failures of an undo */
	SAGA_STUCK_DEADLINE,		/* deadline after the pivot */
	SAGA_STUCK_HOOK_FAILS,		/* on_completed / on_compensated */
} SagaStuckReason;

/* More runs of nodes in one saga are declined: a loop or for_each ends there. */
#define SAGA_MAX_STEPS	1000000

#define SAGA_BROKEN_LIMIT	3	/* broken answers in a row, then stuck */
#define SAGA_UNDO_LIMIT		10	/* failures of an undo, then stuck */

typedef enum SagaStepStatus
{
	SAGA_STEP_IDLE,				/* not reached */
	SAGA_STEP_CALLING,			/* action: call to be sent, or in flight */
	SAGA_STEP_BACKOFF,			/* action: next attempt at 'due' */
	SAGA_STEP_STUCK,			/* action: an operator must act */
	SAGA_STEP_DONE,
	SAGA_STEP_FAILED,			/* declined or given up: no effect is left,
								 * unless 'maybe' */
	SAGA_STEP_SKIPPED,			/* by an operator; has no effect to undo */
	SAGA_STEP_UNDO_CALLING,
	SAGA_STEP_UNDO_BACKOFF,
	SAGA_STEP_UNDO_STUCK,
	SAGA_STEP_UNDONE,			/* compensated, or known to need nothing */

	SAGA_STEP_EVALUATING,		/* ephemeral: an expression is out */
	SAGA_STEP_SLEEPING,			/* until 'due' */
	SAGA_STEP_AWAITING,			/* SIGNAL: it, or 'due' */
	SAGA_STEP_ACCEPTED,			/* action taken on: its answer, or 'due' */
	SAGA_STEP_SCOPED,			/* EACH, LOOP: its body runs */
	SAGA_STEP_UNDO_ACCEPTED,	/* compensation taken on: the same */
	SAGA_STEP_NOT_TAKEN,		/* over: condition false, or other case */
} SagaStepStatus;

/*
 * A run of one node.  Nodes of scope 0 have one, those of a body one for each
 * element or iteration; going back to a save-point, or rerun_from(), makes new
 * ones for what runs again.  Records, events and commands name the run: its
 * index into state->steps, which never changes once given.
 */
typedef struct SagaStep
{
	/* ---- a fold of the log ---- */
	int32		node;			/* which node of the graph this is a run of */
	int32		run;			/* the scope run it is in: state->runs[] */
	int32		retake;			/* 0, or how often it was begun anew */
	int32		replaces;		/* the take before this one, or -1 */
	int32		made_at;		/* seq of the record that made it; 0 = START */
	int32		value;			/* BRANCH: case taken; EACH: elements; LOOP:
								 * iterations begun; SAVEPOINT: tries begun */
	int32		first_run;		/* EACH, LOOP: its newest scope run, or -1; the
								 * others by SagaScopeRun.previous */
	int32		runs_open;		/* EACH, LOOP: those that are not over */
	uint8		status;			/* SagaStepStatus.  A retry that is out leaves
								 * it in BACKOFF / UNDO_BACKOFF, with in_flight.
								 * CALLING / UNDO_CALLING of a local call and
								 * EVALUATING are ephemeral (no record). */
	uint8		reason;			/* SagaStuckReason while it needs somebody */
	uint8		last_kind;		/* SagaAnswerKind of the last attempt */
	uint8		broken;			/* broken answers in a row */
	bool		replaced:1;		/* a later take stands in its place */
	bool		breakpoint:1;	/* pause when it is reached */
	bool		evaluated:1;	/* its condition was found true */
	bool		region:1;		/* of an undo back to a save-point */
	bool		maybe:1;		/* remote: the action may have happened
								 * although we hold no answer saying so */
	bool		undo_maybe:1;	/* the same of the compensation */
	bool		sticky:1;		/* an attempt of the current op went
								 * unanswered: it can still arrive, so that a
								 * later "no" does not end the doubt */
	bool		happened:1;		/* the action is recorded as done */
	bool		continued:1;	/* FAILED, and counts as done */
	bool		settled:1;		/* those that follow have been told */
	bool		refused:1;		/* claimed for a skip: SKIPPED must follow */
	bool		claiming:1;		/* a verb waits for SAGA_OP_CLAIM */
	bool		claim_skip:1;	/* ... which is to skip the step */
	bool		claim_failed:1;	/* the last claim got no result */
	bool		skip_tried:1;	/* ... and was for a skip: if the call is now
								 * answered REFUSED, that has come to pass */
	int32		attempts;		/* attempts of the current op that were
								 * answered (lost workers eat none) */
	int32		claim_tries;	/* the same of the current claim */
	int32		intent_at;		/* seq of the action's INTENT */
	int32		done_at;		/* seq of the record that ended the action:
								 * the order of completion */
	int32		unmet;			/* nodes it still waits for */
	SagaTime	due;			/* in BACKOFF / UNDO_BACKOFF, 0 = at once; in
								 * SLEEPING, AWAITING, ACCEPTED, 0 = never */
	SagaTime	claim_due;		/* while claiming: not before */

	/* ---- ephemeral ---- */
	bool		in_flight:1;	/* a call is out */
	bool		claim_out:1;	/* a claim is out */
	bool		lost:1;			/* a call of the current op may have been sent
								 * whose answer will never be seen */
	bool		undo_opened:1;	/* its bodies may be undone */
	bool		listed:1;		/* in state->failed */
	uint8		undo_class;		/* machine_undo.c's */
	int32		undo_wait;		/* how many others still block its undo */
	int32		wake;			/* 1 + place in state->wakes; 0: in none */
} SagaStep;

/* One run of a scope: the definition, an element, an iteration. */
typedef struct SagaScopeRun
{
	int32		scope;
	int32		owner;			/* step whose body this is; -1 */
	int32		number;			/* element or iteration, from 0 */
	int32		previous;		/* the owner's scope run before it, or -1 */
	int32		open;			/* its steps that are not over */
	bool		started;
	int32	   *steps;			/* by node - scope->first: the current run of
								 * each of its nodes */

	/* ---- ephemeral ---- */
	bool		undo_shut;		/* the undo of what follows comes first */
	int32		undo_open;		/* steps not clear yet */
} SagaScopeRun;

/* A signal that came and was not taken yet. */
typedef struct SagaMail
{
	int32		signal;
	int32		seq;			/* of its SIGNAL record */
} SagaMail;

/* Step numbers, growing in the state's arena. */
typedef struct SagaSteps
{
	int32	   *items;
	int32		n;
	int32		max;
} SagaSteps;

/* When a step that waits for a time must be looked at. */
typedef struct SagaWake
{
	SagaTime	at;
	int32		step;
} SagaWake;

typedef struct SagaState
{
	const SagaGraph *graph;
	SagaArena  *arena;			/* the arrays below grow in it; a copy of the
								 * one given to saga_machine_create() */

	/* ---- a fold of the log ---- */
	uint8		state;			/* SagaStateName: what users see */
	uint8		direction;
	uint8		cause;
	uint8		stuck_reason;
	bool		paused;			/* no new call starts */
	bool		terminating;	/* resolves what may have happened, then ends */
	bool		deadline_hit;	/* after the pivot: reported once */
	bool		deadline_stuck; /* ... and nobody has acted yet */
	bool		pivot_intent;	/* the pivot's intent is logged: no cancel */
	bool		past_pivot;		/* the pivot was not taken, and what follows it
								 * was reached: as if it had happened */
	int32		failed_node;	/* whose failure began the undo, or NO_NODE */
	int32		stuck_node;
	int32		seq;			/* of the last record */
	int32		open;			/* steps that are not over, see step_is_open() */
	int32		nheld;			/* steps FAILED, consequence not yet drawn */
	int32		nwaiting;		/* steps SLEEPING, AWAITING, ACCEPTED ... */
	int32		nbusy;			/* steps that do not wait for a time or signal */
	int32		nstuck;			/* steps and hook with a stuck reason */
	int32		restarts;		/* RESTARTED records */
	int32		back_to;		/* undo goes back to this save-point's step
								 * only, then forward again; or NO_NODE */
	SagaTime	deadline;		/* absolute, or NEVER */
	SagaStep	hook;			/* the pseudo-node END */
	bool		stuck_hook_due; /* on_stuck to be run, or in flight */
	int32		stuck_hooks;	/* ... so many times */
	int32		nsteps;
	int32		maxsteps;
	SagaStep   *steps;
	int32		nruns;
	int32		maxruns;
	SagaScopeRun *runs;			/* the first is that of scope 0 */
	int32		nmail;
	int32		maxmail;
	SagaMail   *mail;
	SagaSteps	ready;			/* in the order they became ready, or their
								 * bodies were over */

	/* ---- ephemeral ---- */
	int32		in_flight;		/* number of calls out, hooks included */
	bool		stuck_hook_out; /* on_stuck is in flight */
	bool		resumed;		/* START or resume() has been seen */

	/*
	 * Set by the caller before saga_machine_resume(), if it folds a saga that
	 * this very process evicted when saga_machine_may_evict() allowed it: then
	 * no unseen call of an earlier life can be under way, and nothing becomes
	 * doubtful.
	 */
	bool		clean;
	bool		restart;		/* some call may have to go out again */
	bool		deliver;		/* some mail may be taken */
	bool		wakes_stale;	/* the wakes must be found again */
	int32		nwakes;
	int32		maxwakes;
	SagaWake   *wakes;			/* a heap, the earliest on top */
	int32		nlost;			/* steps with 'lost' */
	SagaSteps	failed;			/* FAILED, to be judged (and some others) */
	SagaSteps	awaiting;		/* AWAITING (and some others) */
	int32		ready_head;		/* ready steps before it have been begun */
	int32		undo_awaited;	/* steps by undo_class */
	int32		undo_needed;
	int32		undo_active;
	SagaSteps	undo_heap;		/* those that may be undone, newest first */
	SagaSteps	scratch;
} SagaState;

/*
 * One line of the log.  The caller writes it as the row (saga, seq) and keeps
 * 'payload' together with it.  Which fields mean something is said per kind.
 */
typedef enum SagaRecordKind
{
	SAGA_RECORD_STARTED,		/* - ; first of every log */
	SAGA_RECORD_INTENT,			/* node, op (ACTION/UNDO/CLAIM), remote calls
								 * only, once per op, not per attempt */
	SAGA_RECORD_DONE,			/* node, op, attempt, payload = result */
	SAGA_RECORD_FAILED,			/* node, op, attempt, answer, due = next try,
								 * 0 = no further try; payload = error */
	SAGA_RECORD_CONTINUED,		/* node given up or declined with on_failure
								 * 'continue': counts as done */
	SAGA_RECORD_SKIPPED,		/* node, op; payload = the operator's result */
	SAGA_RECORD_UNDO,			/* direction turns: cause, node = failed one;
								 * value = 1 + step of the save-point that it
								 * goes back to, 0 = all is undone */
	SAGA_RECORD_STUCK,			/* node, op, stuck reason */
	SAGA_RECORD_PAUSED,
	SAGA_RECORD_RESUMED,
	SAGA_RECORD_RETRIED,		/* node, op: attempts start at 0 again */
	SAGA_RECORD_TERMINATING,
	SAGA_RECORD_REFUSED,		/* node, op that the participant will refuse */
	SAGA_RECORD_HOOK,			/* node END / ON_STUCK answered: answer, due */
	SAGA_RECORD_ENDED,			/* state */
	SAGA_RECORD_CHOSEN,			/* node, value: its condition (if it has one
								 * and was not asked yet), else its case */
	SAGA_RECORD_EXPANDED,		/* node, value = elements; payload = them */
	SAGA_RECORD_ITERATION,		/* node, value = number of the iteration */
	SAGA_RECORD_SLEEPING,		/* node, due */
	SAGA_RECORD_AWAITING,		/* node, due: waits for its signal */
	SAGA_RECORD_ACCEPTED,		/* node, op, due, maybe; again when a heartbeat
								 * has moved 'due' */
	SAGA_RECORD_SIGNAL,			/* value = signal; payload; kept until taken:
								 * by the DONE whose value is this one's seq */
	SAGA_RECORD_RESTARTED,		/* node: a save-point (back there, all undone)
								 * or the step of rerun_from; it and all that
								 * follows it are begun anew */
	SAGA_RECORD_DEADLINE,		/* due = the new deadline; 0 = none */
	SAGA_RECORD_BREAKPOINT,		/* node, value: 1 set, 0 taken away, 2 met:
								 * the saga is paused by this */
	SAGA_RECORD_REOPENED,		/* a completed child is undone after all */
	SAGA_RECORD_MIGRATED,		/* from here on with another version; the log
								 * before it folds on that, too */
	SAGA_RECORD_OPTIONS,		/* node; payload = its options from here on,
								 * which the caller applies */
} SagaRecordKind;

typedef struct SagaRecord
{
	int32		seq;
	uint8		kind;			/* SagaRecordKind */
	uint8		op;				/* SagaOp */
	uint8		answer;			/* SagaAnswerKind */
	uint8		state;			/* SagaStateName, of ENDED */
	uint8		cause;			/* of UNDO, ENDED */
	uint8		reason;			/* SagaStuckReason */
	bool		maybe;			/* of FAILED, ACCEPTED: an earlier attempt went
								 * unanswered, and may still happen */
	int32		node;
	int32		attempt;
	int64		value;
	SagaTime	due;
	const void *payload;		/* the event's, passed through untouched */
} SagaRecord;

/*
 * What the caller must do once the records decided with it are written:
 * a local call and a hook may start at once, a remote call only when the
 * records are flushed.
 */
typedef enum SagaCommandKind
{
	SAGA_CMD_CALL,				/* node, op, attempt, conditional, eval */
	SAGA_CMD_CANCEL_CALL,		/* node, op: an answer is no longer awaited */
	SAGA_CMD_ENDED,				/* tell those who wait, forget the saga */
} SagaCommandKind;

typedef struct SagaCommand
{
	uint8		kind;			/* SagaCommandKind */
	uint8		op;
	int32		node;
	int32		attempt;		/* 1, 2, ...: for display, part of no key */

	/*
	 * UNDO only: the action may not have happened.  The participant must
	 * first refuse the action's key, and run the compensation only if the
	 * action is recorded as done.
	 */
	bool		conditional;
	uint8		eval;			/* EVAL only: SagaEval */

	/*
	 * CLAIM only: SAGA_OP_ACTION or SAGA_OP_UNDO, whichever call it is about.
	 * (Not always the saga's direction: a claim may outlive a turn.)
	 */
	uint8		target;
} SagaCommand;

typedef enum SagaEventKind
{
	SAGA_EVENT_START,			/* first event of a new saga */
	SAGA_EVENT_ANSWER,			/* node, op, answer, retry_after, free */
	SAGA_EVENT_LOST,			/* node, op: the worker that ran it is gone,
								 * outcome not recorded; eats no attempt */
	SAGA_EVENT_TIMER,			/* something may be due at 'now' */
	SAGA_EVENT_VERB,			/* verb, node (or NO_NODE), value, force */
	SAGA_EVENT_COMPLETED,		/* node, op, answer: of a call that was
								 * ACCEPTED, or whose ACCEPTED is not here yet;
								 * the first one counts.  A call that is still
								 * out is cancelled by it.  A "no" must come
								 * before any answer of a later attempt. */
	SAGA_EVENT_HEARTBEAT,		/* node, op: an accepted call is alive */
	SAGA_EVENT_SIGNAL,			/* value = signal */
} SagaEventKind;

typedef struct SagaEvent
{
	uint8		kind;			/* SagaEventKind */
	uint8		op;
	uint8		answer;
	uint8		verb;
	bool		force;			/* verb: do not ask the participant */
	bool		free;			/* answer: eats no attempt (lock time-out of
								 * a claim) */
	int32		node;
	int64		value;
	SagaTime	retry_after;	/* answer: not before now + this; 0 = none */
	double		random;			/* 0 <= random < 1: jitter */
	const void *payload;
} SagaEvent;

/*
 * Result of one decision; arrays grow from the arena and belong to the
 * caller, who sets the counts to 0 before each use.
 */
typedef struct SagaDecision
{
	SagaArena  *arena;
	int			nrecords;
	int			maxrecords;
	SagaRecord *records;
	int			ncommands;
	int			maxcommands;
	SagaCommand *commands;

	/*
	 * A verb or event that changed nothing: static text why, for the answer
	 * 'ignored: <why>' and the log of the verb; else NULL.
	 */
	const char *ignored;
} SagaDecision;

/* A new state: PENDING, nothing done.  It grows in the arena. */
extern SagaState *saga_machine_create(const SagaGraph *graph,
									  SagaTime deadline, SagaArena *arena);

/* Bytes saga_machine_create() takes for a graph. */
extern size_t saga_machine_size(const SagaGraph *graph);

/*
 * Decide on one event.  Applies each record it emits to the state.
 *
 * An answer is that of the operation (node, op): once a call of it is out
 * again, the "no" or ACCEPTED of an earlier one must not be delivered any
 * more.  DONE of a local call may be, at any time.
 *
 * An ended saga takes no event but the verb UNDO_COMPLETED.
 */
extern void saga_machine_decide(SagaState *state, const SagaEvent *event,
								SagaTime now, SagaDecision *out);

/*
 * The fold: one record onto the state.  False, state untouched, if the record
 * cannot follow this state (a damaged log): wrong seq, node out of range,
 * impossible transition.
 */
extern bool saga_machine_apply(SagaState *state, const SagaRecord *record);

/*
 * After the last record of the log, and after ANSWER DONE for every committed
 * local outcome that is not in it (those of actions before those of undos, the
 * ending hook last): everything that is pending (calls whose
 * intent is logged, ready local steps, hooks) as commands and, where a crash
 * fell between two records, the records that were still to come.
 */
extern void saga_machine_resume(SagaState *state, SagaTime now,
								SagaDecision *out);

/* When saga_machine_decide(TIMER) next has something to do, or NEVER. */
extern SagaTime saga_machine_next_due(const SagaState *state);

/*
 * May the state be dropped, to be folded again later with 'clean' set?  No
 * call is out, and none is known to be lost.  (Its records must be flushed.)
 */
extern bool saga_machine_may_evict(const SagaState *state);

/* May a cancel / terminate / ... still have an effect?  NULL = yes, or why. */
extern const char *saga_machine_verb_refusal(const SagaState *state,
											 SagaVerb verb, int32 node,
											 bool force);

/*
 * The name of a step's run: the node's name, "[number]" for each body it is
 * in, outermost first, and "~retake" if it was begun anew.  Written to buf (at
 * most size bytes); returns buf, or the node's own name where that is all.
 */
extern const char *saga_machine_step_name(const SagaState *state, int32 step,
										  char *buf, size_t size);

/*
 * The step a name means: with a number or retake exactly that run; without, the
 * newest one.  NO_NODE if there is none (yet).
 */
extern int32 saga_machine_find_step(const SagaState *state, const char *name);

/*
 * Which run of a node is meant where step 'from' says ":node": that of its own
 * iteration or element, or of one around it; of a body it is not in, the
 * newest.  from NO_NODE or NODE_END: seen from scope 0.  NO_NODE: none yet.
 */
extern int32 saga_machine_seen_from(const SagaState *state, int32 from,
									int32 node);

/*
 * The element or iteration a step is in: the number of the innermost run of
 * an EACH (each) or LOOP around it, and its owner's step; -1 if none.
 */
extern int32 saga_machine_number(const SagaState *state, int32 step, bool each,
								 int32 *owner);

extern const char *saga_state_name(SagaStateName state);
extern const char *saga_cause_name(SagaCause cause);
extern const char *saga_record_name(SagaRecordKind kind);
extern const char *saga_op_name(SagaOp op);
extern const char *saga_answer_name(SagaAnswerKind kind);
extern const char *saga_stuck_reason_name(SagaStuckReason reason);
extern const char *saga_verb_name(SagaVerb verb);

/* Reverse of the name functions, for replay; -1 if unknown. */
extern int	saga_record_from_name(const char *name);
extern int	saga_op_from_name(const char *name);
extern int	saga_answer_from_name(const char *name);
extern int	saga_state_from_name(const char *name);
extern int	saga_cause_from_name(const char *name);
extern int	saga_stuck_reason_from_name(const char *name);

#endif							/* SAGA_MACHINE_H */
