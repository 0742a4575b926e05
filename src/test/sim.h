/*
 * sim.h
 *		What the parts of the machine's simulator share (see machine_sim.c).
 */
#ifndef SAGA_SIM_H
#define SAGA_SIM_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "machine.h"

#define MAX_NODES	48
#define MAX_DEPS	6
#define MAX_STEPS	8192		/* of one saga; the world keeps it below */
#define MAX_EVENTS	40000		/* a saga that needs more does not end */
#define CALL_TIMEOUT (30 * SAGA_SECOND)

/* ------------------------------------------------------- coverage */

enum
{
	COV_CRASH, COV_TAIL_LOST, COV_TORN_DECISION, COV_CRASH_IN_RECOVERY,
	COV_OUTCOME_FED, COV_OUTCOME_FIRST, COV_CLEAN_RELOAD, COV_TIMEOUT,
	COV_LATE_EFFECT, COV_DUPLICATE, COV_STALE_ANSWER, COV_LOST_CALL,
	COV_UNDO_RUN, COV_UNDO_NOTHING, COV_CLAIM_DONE, COV_CLAIM_REFUSED,
	COV_CLAIM_FAILED, COV_PIVOT_CLAIMED, COV_HELD, COV_CLOCK_JUMP,
	COV_CANCEL_CALL, COV_FREE_ANSWER, COV_RETRY_AFTER, COV_FORCED,
	COV_ON_STUCK, COV_OPERATOR_NEEDED, COV_BIG_GRAPH, COV_EMPTY_GRAPH,
	COV_FUZZ_ACCEPTED, COV_FUZZ_REFUSED,
	COV_NESTED, COV_OVERTOOK, COV_COMPLETED_FAIL, COV_REDELIVERED,
	COV_HEARTBEAT, COV_SIGNAL_EARLY, COV_SIGNAL_AWAITED, COV_ONCE_UNKNOWN,
	COV_WENT_BACK, COV_BACK_AND_FULL, COV_BACK_OUTSIDE, COV_RERUN,
	COV_OLD_TAKE_UNDONE, COV_BODY_UNDONE, COV_NOT_TAKEN, COV_LOOP_BOUND,
	COV_WAITING, COV_BREAK_MET, COV_REOPENED, COV_UNDO_ACCEPTED, COV_COUNT
};

extern int64 cov[COV_COUNT];
extern int64 cov_record[SAGA_RECORD_REOPENED + 1];
extern int64 cov_cause[SAGA_CAUSE_OPERATOR + 1];
extern int64 cov_reason[SAGA_STUCK_HOOK_FAILS + 1];
extern int64 cov_answer[SAGA_OP_EVAL + 1][SAGA_ANSWER_ACCEPTED + 1];
extern int64 ndecisions;
extern int64 nrecords_total;

/* ------------------------------------------------------- the world */

/* A key at a participant's barrier (or in the table of local outcomes). */
typedef enum Key
{
	KEY_FREE,
	KEY_DONE,
	KEY_REFUSED,
	KEY_ACCEPTED,				/* to be done some time */
} Key;

/* One operation of one run, known to the world by its name. */
typedef struct Place
{
	char		name[48];
	int32		node;
	bool		undo;
	uint8		key;
	bool		outcome_row;	/* local: committed, record not yet flushed */
	bool		forced;			/* an operator took the risk */
	bool		broken;			/* misconfigured until the world is honest */
	bool		callback;		/* takes calls on, and answers later */
	bool		unknown;		/* a call may have been sent, unanswered */
	bool		completing;		/* a completion is on its way */
	bool		ordered;		/* undo: its turn has been checked */
	int			effects;
	int			intent;			/* 1 + index of the record, 0 = none */
	int			fail;			/* per mille, until honest */
	SagaTime	alive;			/* accepted: last sign of life */
	int			next;			/* of the hash chain, 1 + number */
} Place;

typedef struct Call
{
	int32		node;			/* the step */
	uint8		op;
	uint8		eval;
	int			place;			/* -1: a hook or expression */
	bool		conditional;
	bool		local;
	bool		open;			/* the coordinator waits for it */
	bool		sent;
	bool		timed_out;
	int			epoch;
	int			need;			/* records that must be flushed first */
} Call;

typedef enum MessageKind
{
	MSG_EXECUTE,				/* reaches the participant or executor */
	MSG_SILENT,					/* the same, but its answer is lost */
	MSG_ANSWER,
	MSG_LOST,
	MSG_COMPLETE,				/* what was accepted is done, or fails */
	MSG_INBOX,					/* a row of the inbox is seen */
	MSG_HEARTBEAT,
} MessageKind;

typedef struct Message
{
	SagaTime	at;
	int			id;				/* call, place or row of the inbox */
	uint8		kind;
	uint8		answer;
	int64		value;			/* of an expression */
} Message;

/* A durable message to the coordinator; deleted with the turn that took it. */
typedef struct Inbox
{
	uint8		kind;			/* SagaEventKind: COMPLETED or SIGNAL */
	uint8		answer;
	int			place;
	int64		value;
	int			taken_at;		/* records that must survive; 0 = not taken */
} Inbox;

#define MAX_MESSAGES 8192
#define MAX_CALLS	65536
#define MAX_LOG		65536
#define MAX_PLACES	16384
#define MAX_INBOX	8192

extern SagaNode nodes[MAX_NODES];
extern SagaGraph graph;
extern uint64 reach[MAX_NODES];	/* what follows a node, in its scope */
extern bool declines[MAX_NODES];

extern SagaState *live;			/* as the coordinator has it */
extern SagaState *fold;			/* the log, by saga_machine_apply() alone */
extern SagaDecision out;
extern SagaRecord records[MAX_LOG];
extern int	nlog;
extern int	nflushed;
extern bool went_back[MAX_STEPS];	/* replaced, and undone before */

extern Call calls[MAX_CALLS];
extern int	ncalls;
extern Place places[MAX_PLACES];
extern int	nplaces;
extern Inbox inbox[MAX_INBOX];
extern int	ninbox;
extern Message messages[MAX_MESSAGES];
extern int	nmessages;
extern bool hook_row;
extern int	hook_effects[2];	/* by direction */
extern int	hook_fail;

extern SagaTime now;
extern int	epoch;
extern bool honest;
extern bool verbose;
extern int	fault_level;		/* of participants and network, 0 to 3 */
extern uint64 seed;
extern int64 number;
extern sigjmp_buf failed;

/* sim_world.c: chance, memory, graphs, participants */
extern uint64 rng;
extern uint64 next_random(void);
extern int	rnd(int n);
extern bool chance(int per_mille);
extern double rnd_share(void);
extern SagaArena graph_arena,
			live_arena,
			fold_arena,
			out_arena;
extern void make_pools(void);
extern void reset_pool(SagaArena *arena);
extern void trace(const char *format,...);
extern void fail(const char *format,...);
extern void trace_record(const SagaRecord *r);
extern const char *step_name(const SagaState *state, int32 step);
extern int	place_of(const SagaState *state, int32 step, bool undo);
extern void forget_places(void);
extern void make_graph(void);
extern void make_world(void);
extern void post(SagaTime at, MessageKind kind, int id, SagaAnswerKind answer);
extern SagaTime delay(void);
extern void send_local(int id);
extern void send_remote(int id);
extern SagaAnswerKind execute(Call *call, int64 *value);
extern void complete(int place);
extern void put_inbox(SagaEventKind kind, int place, SagaAnswerKind answer,
					  int64 value);
extern void act(int place);

#define CHECK(condition, ...) \
	do { if (!(condition)) fail(__VA_ARGS__); } while (0)

/* sim_check.c: what must hold */
extern void compare_states(const SagaState *a, const SagaState *b);
extern void check_counts(const SagaState *state);
extern void check_in_flight(void);
extern void check_undo_order(int32 step);
extern void check_failure(const SagaRecord *r);
extern void check_stuck(const SagaRecord *r);
extern void check_call(const SagaCommand *c);
extern void check_effects_after(int place);
extern void check_silence(void);
extern void check_ended(void);

/* sim_cases.c */
extern void check_graph_faults(void);
extern void check_names(void);
extern void fuzz_fold(void);

/* sim_coordinator.c */
extern void new_coordinator(SagaTime saga_deadline);
extern void fold_log(void);
extern SagaEvent make_event(SagaEventKind kind);
extern void decide(SagaEvent *event);
extern bool flush(void);
extern void crash(void);
extern void evict(void);
extern void handle_message(Message m);

/* sim_measure.c */
extern void measure(void);

#endif							/* SAGA_SIM_H */
