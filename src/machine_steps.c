/*
 * machine_steps.c
 *		What can be asked about a step: which expression or call it is at, its
 *		name, and which run of a node it sees.
 *
 * May be called from everywhere; changes nothing.  The names are stored in
 * the log and part of the participants' keys: their form must not change.
 */
#include "machine_private.h"

/* "[element]" and "~retake" of an int32 at each depth */
#define MAX_SUFFIX	14
#define MAX_DEPTH	32

/* ------------------------------------------------------- where it is */

/* The expression that stands between the step and its work, if any. */
bool
machine_needs_eval(const SagaState *state, const SagaStep *step,
				   SagaEval *eval)
{
	const SagaNode *node = node_of(state, step);

	if (node->has_condition && !step->evaluated)
	{
		*eval = SAGA_EVAL_CONDITION;
		return true;
	}
	switch (node->kind)
	{
		case SAGA_NODE_SLEEP:
			*eval = SAGA_EVAL_TIME;
			return true;
		case SAGA_NODE_BRANCH:
			*eval = SAGA_EVAL_CASES;
			return step->status != SAGA_STEP_SCOPED;
		case SAGA_NODE_EACH:
			*eval = SAGA_EVAL_ITEMS;
			return step->status != SAGA_STEP_SCOPED;
		case SAGA_NODE_LOOP:
			*eval = SAGA_EVAL_WHILE;
			return node->has_while;
		default:
			return false;
	}
}

/* What a call of the step that is out is about. */
SagaOp
machine_op(const SagaState *state, const SagaStep *step)
{
	SagaEval	eval;

	if (step == &state->hook)
		return SAGA_OP_HOOK;
	if (in_undo_phase(step) || step->status == SAGA_STEP_UNDONE)
		return SAGA_OP_UNDO;
	return machine_needs_eval(state, step, &eval) ? SAGA_OP_EVAL :
		SAGA_OP_ACTION;
}

/* ------------------------------------------------------- names */

static char *
put_number(char *at, int32 number)
{
	char		digits[12];
	int			n = 0;

	do
	{
		digits[n++] = (char) ('0' + number % 10);
		number /= 10;
	} while (number > 0);
	while (n > 0)
		*at++ = digits[--n];
	return at;
}

const char *
saga_machine_step_name(const SagaState *state, int32 step, char *buf,
					   size_t size)
{
	const SagaStep *s = &state->steps[step];
	const char *name = node_of(state, s)->name;
	int32		numbers[MAX_DEPTH];
	char		suffix[MAX_SUFFIX * (MAX_DEPTH + 1)];
	char	   *end = suffix;
	size_t		length = strlen(name);
	int			depth = 0;

	for (int32 run = s->run; state->runs[run].owner >= 0;
		 run = state->steps[state->runs[run].owner].run)
		if (depth < MAX_DEPTH)
			numbers[depth++] = state->runs[run].number;
	if (depth == 0 && s->retake == 0)
		return name;
	while (depth > 0)
	{
		*end++ = '[';
		end = put_number(end, numbers[--depth]);
		*end++ = ']';
	}
	if (s->retake > 0)
	{
		*end++ = '~';
		end = put_number(end, s->retake);
	}
	if (size == 0)
		return buf;

	/* too small a buffer: cut the name, not what makes it unique */
	if (length + (size_t) (end - suffix) >= size)
		length = size - 1 - Min((size_t) (end - suffix), size - 1);
	memcpy(buf, name, length);
	size = Min((size_t) (end - suffix), size - 1 - length);
	memcpy(buf + length, suffix, size);
	buf[length + size] = '\0';
	return buf;
}

/* A name taken apart: base, "[n]" outermost first, "~retake" or -1. */
typedef struct StepName
{
	const char *base;
	size_t		length;
	int			depth;
	int32		numbers[MAX_DEPTH];
	int32		retake;
} StepName;

/* The number that ends before *end, after 'open'; *end moves before that. */
static bool
take_number(const char *start, const char **end, char open, int32 *number)
{
	const char *at = *end;
	int64		value = 0;

	while (at > start && at[-1] >= '0' && at[-1] <= '9')
		at--;
	if (at == *end || *end - at > 10 || at == start || at[-1] != open)
		return false;
	for (const char *digit = at; digit < *end; digit++)
		value = 10 * value + (*digit - '0');
	if (value > INT32_MAX)
		return false;
	*number = (int32) value;
	*end = at - 1;
	return true;
}

static void
parse_name(const char *name, StepName *parts)
{
	const char *end = name + strlen(name);
	const char *inner;
	int32		number;

	memset(parts, 0, sizeof(*parts));
	parts->base = name;
	if (!take_number(name, &end, '~', &parts->retake))
		parts->retake = -1;
	while (end > name && end[-1] == ']' && parts->depth < MAX_DEPTH)
	{
		inner = end - 1;
		if (!take_number(name, &inner, '[', &number))
			break;
		end = inner;
		for (int i = parts->depth++; i > 0; i--)
			parts->numbers[i] = parts->numbers[i - 1];
		parts->numbers[0] = number;
	}
	parts->length = (size_t) (end - name);
}

static int
depth_of(const SagaGraph *graph, int32 node)
{
	int			depth = 0;

	while ((node = graph->scopes[graph->nodes[node].scope].owner) >= 0)
		depth++;
	return depth;
}

/*
 * The run of an owner's body with this number, -1 meaning the newest: of its
 * latest take that has one.
 */
int32
machine_run_by_number(const SagaState *state, int32 owner, int32 number)
{
	for (; owner >= 0; owner = state->steps[owner].replaces)
	{
		const SagaStep *step = &state->steps[owner];
		int32		run = step->first_run;

		if (run < 0)
			continue;
		if (number < 0)
			return run;
		if (node_of(state, step)->kind == SAGA_NODE_EACH)
		{
			/* those of elements were made together */
			if (number < step->value)
				return run - (step->value - 1 - number);
			continue;
		}
		while (run >= 0 && state->runs[run].number != number)
			run = state->runs[run].previous;
		if (run >= 0)
			return run;
	}
	return -1;
}

/* The scope run that a node's run is in, by the numbers of a name. */
static int32
find_run(const SagaState *state, int32 node, const StepName *parts, int depth)
{
	int32		owner = state->graph->scopes[state->graph->nodes[node].scope].owner;
	int32		run;

	if (owner < 0)
		return 0;
	run = find_run(state, owner, parts, depth - 1);
	if (run < 0)
		return -1;
	return machine_run_by_number(state, sibling(state, run, owner),
						 depth <= parts->depth ? parts->numbers[depth - 1] : -1);
}

int32
saga_machine_find_step(const SagaState *state, const char *name)
{
	const SagaGraph *graph = state->graph;
	int32		best = -1;
	int			best_depth = 0;
	int32		step;
	StepName	parts;

	/* of nodes of one name that which is as deep as the name, or deeper */
	parse_name(name, &parts);
	for (int32 i = 0; i < graph->nnodes; i++)
	{
		int			depth;

		if (strncmp(graph->nodes[i].name, name, parts.length) != 0 ||
			graph->nodes[i].name[parts.length] != '\0')
			continue;
		depth = depth_of(graph, i);
		if (depth >= parts.depth && (best < 0 || depth < best_depth))
		{
			best = i;
			best_depth = depth;
		}
	}
	if (best < 0)
		return SAGA_NO_NODE;
	step = find_run(state, best, &parts, best_depth);
	if (step < 0)
		return SAGA_NO_NODE;
	step = sibling(state, step, best);
	while (parts.retake >= 0 && state->steps[step].retake != parts.retake)
	{
		step = state->steps[step].replaces;
		if (step < 0)
			return SAGA_NO_NODE;
	}
	return step;
}

/* ------------------------------------------------------- who sees whom */

static int32
seen_run(const SagaState *state, int32 from, int32 scope)
{
	int32		run = from >= 0 ? state->steps[from].run : 0;
	int32		owner;

	while (state->runs[run].scope != scope && state->runs[run].owner >= 0)
		run = state->steps[state->runs[run].owner].run;
	if (state->runs[run].scope == scope)
		return run;
	owner = state->graph->scopes[scope].owner;
	run = seen_run(state, from, state->graph->nodes[owner].scope);
	return run < 0 ? -1 : state->steps[sibling(state, run, owner)].first_run;
}

int32
saga_machine_seen_from(const SagaState *state, int32 from, int32 node)
{
	int32		run = seen_run(state, from, state->graph->nodes[node].scope);
	int32		step;

	if (run < 0)
		return SAGA_NO_NODE;
	step = sibling(state, run, node);

	/* what was begun anew since sees no more than it saw then */
	while (from >= 0 && state->steps[from].replaced &&
		   state->steps[step].made_at > state->steps[from].made_at &&
		   state->steps[step].replaces >= 0)
		step = state->steps[step].replaces;
	return step;
}

int32
saga_machine_number(const SagaState *state, int32 step, bool each,
					int32 *owner)
{
	SagaNodeKind kind = each ? SAGA_NODE_EACH : SAGA_NODE_LOOP;

	*owner = SAGA_NO_NODE;
	if (!is_step(state, step))
		return -1;
	for (int32 run = state->steps[step].run; state->runs[run].owner >= 0;
		 run = state->steps[state->runs[run].owner].run)
		if (node_of(state, &state->steps[state->runs[run].owner])->kind == kind)
		{
			*owner = state->runs[run].owner;
			return state->runs[run].number;
		}
	return -1;
}
