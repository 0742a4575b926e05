/*
 * machine_names.c
 *		The words for the machine's enumerations, in both directions.  They are
 *		stored in the log and the instance rows and seen by users: a word may
 *		be added, never changed.
 *
 * May be called from everywhere.  Pure (see pure.h); keeps no state.
 */
#include "machine.h"

#define COUNT(names) ((int) (sizeof(names) / sizeof((names)[0])))

static const char *const state_names[] = {
	[SAGA_PENDING] = "pending",
	[SAGA_RUNNING] = "running",
	[SAGA_WAITING] = "waiting",
	[SAGA_PAUSED] = "paused",
	[SAGA_STUCK] = "stuck",
	[SAGA_COMPLETED] = "completed",
	[SAGA_COMPENSATED] = "compensated",
	[SAGA_TERMINATED] = "terminated",
};

static const char *const cause_names[] = {
	[SAGA_CAUSE_NONE] = "none",
	[SAGA_CAUSE_DECLINED] = "declined",
	[SAGA_CAUSE_CANCELLED] = "cancelled",
	[SAGA_CAUSE_DEADLINE] = "deadline",
	[SAGA_CAUSE_ABORTED] = "aborted",
	[SAGA_CAUSE_OPERATOR] = "operator",
};

static const char *const record_names[] = {
	[SAGA_RECORD_STARTED] = "started",
	[SAGA_RECORD_INTENT] = "intent",
	[SAGA_RECORD_DONE] = "done",
	[SAGA_RECORD_FAILED] = "failed",
	[SAGA_RECORD_CONTINUED] = "continued",
	[SAGA_RECORD_SKIPPED] = "skipped",
	[SAGA_RECORD_UNDO] = "undo",
	[SAGA_RECORD_STUCK] = "stuck",
	[SAGA_RECORD_PAUSED] = "paused",
	[SAGA_RECORD_RESUMED] = "resumed",
	[SAGA_RECORD_RETRIED] = "retried",
	[SAGA_RECORD_TERMINATING] = "terminating",
	[SAGA_RECORD_REFUSED] = "refused",
	[SAGA_RECORD_HOOK] = "hook",
	[SAGA_RECORD_ENDED] = "ended",
	[SAGA_RECORD_CHOSEN] = "chosen",
	[SAGA_RECORD_EXPANDED] = "expanded",
	[SAGA_RECORD_ITERATION] = "iteration",
	[SAGA_RECORD_SLEEPING] = "sleeping",
	[SAGA_RECORD_AWAITING] = "awaiting",
	[SAGA_RECORD_ACCEPTED] = "accepted",
	[SAGA_RECORD_SIGNAL] = "signal",
	[SAGA_RECORD_RESTARTED] = "restarted",
	[SAGA_RECORD_DEADLINE] = "deadline",
	[SAGA_RECORD_BREAKPOINT] = "breakpoint",
	[SAGA_RECORD_REOPENED] = "reopened",
};

static const char *const op_names[] = {
	[SAGA_OP_ACTION] = "action",
	[SAGA_OP_UNDO] = "undo",
	[SAGA_OP_HOOK] = "hook",
	[SAGA_OP_CLAIM] = "claim",
	[SAGA_OP_EVAL] = "eval",
};

static const char *const answer_names[] = {
	[SAGA_ANSWER_DONE] = "done",
	[SAGA_ANSWER_DECLINED] = "declined",
	[SAGA_ANSWER_TRANSIENT] = "transient",
	[SAGA_ANSWER_BROKEN] = "broken",
	[SAGA_ANSWER_UNKNOWN] = "unknown",
	[SAGA_ANSWER_REFUSED] = "refused",
	[SAGA_ANSWER_ACCEPTED] = "accepted",
};

static const char *const reason_names[] = {
	[SAGA_STUCK_NONE] = "none",
	[SAGA_STUCK_DECLINED] = "declined",
	[SAGA_STUCK_BROKEN] = "broken",
	[SAGA_STUCK_UNDO_FAILS] = "undo_fails",
	[SAGA_STUCK_DEADLINE] = "deadline",
	[SAGA_STUCK_HOOK_FAILS] = "hook_fails",
};

static const char *const verb_names[] = {
	[SAGA_VERB_CANCEL] = "cancel",
	[SAGA_VERB_TERMINATE] = "terminate",
	[SAGA_VERB_PAUSE] = "pause",
	[SAGA_VERB_RESUME] = "resume",
	[SAGA_VERB_RETRY_STEP] = "retry_step",
	[SAGA_VERB_SKIP_STEP] = "skip_step",
	[SAGA_VERB_RERUN_FROM] = "rerun_from",
	[SAGA_VERB_SET_DEADLINE] = "set_deadline",
	[SAGA_VERB_BREAKPOINT] = "breakpoint",
	[SAGA_VERB_UNDO_COMPLETED] = "undo_completed",
};

static const char *
name_of(const char *const *names, int count, int value)
{
	return value >= 0 && value < count ? names[value] : "?";
}

static int
value_of(const char *const *names, int count, const char *name)
{
	if (name == NULL)
		return -1;
	for (int i = 0; i < count; i++)
		if (strcmp(names[i], name) == 0)
			return i;
	return -1;
}

const char *
saga_state_name(SagaStateName state)
{
	return name_of(state_names, COUNT(state_names), (int) state);
}

const char *
saga_cause_name(SagaCause cause)
{
	return name_of(cause_names, COUNT(cause_names), (int) cause);
}

const char *
saga_record_name(SagaRecordKind kind)
{
	return name_of(record_names, COUNT(record_names), (int) kind);
}

const char *
saga_op_name(SagaOp op)
{
	return name_of(op_names, COUNT(op_names), (int) op);
}

const char *
saga_answer_name(SagaAnswerKind kind)
{
	return name_of(answer_names, COUNT(answer_names), (int) kind);
}

const char *
saga_stuck_reason_name(SagaStuckReason reason)
{
	return name_of(reason_names, COUNT(reason_names), (int) reason);
}

const char *
saga_verb_name(SagaVerb verb)
{
	return name_of(verb_names, COUNT(verb_names), (int) verb);
}

int
saga_record_from_name(const char *name)
{
	return value_of(record_names, COUNT(record_names), name);
}

int
saga_op_from_name(const char *name)
{
	return value_of(op_names, COUNT(op_names), name);
}

int
saga_answer_from_name(const char *name)
{
	return value_of(answer_names, COUNT(answer_names), name);
}

int
saga_state_from_name(const char *name)
{
	return value_of(state_names, COUNT(state_names), name);
}

int
saga_cause_from_name(const char *name)
{
	return value_of(cause_names, COUNT(cause_names), name);
}

int
saga_stuck_reason_from_name(const char *name)
{
	return value_of(reason_names, COUNT(reason_names), name);
}
