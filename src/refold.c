/*
 * refold.c
 *		The log of a saga on another version of its definition (see refold.h):
 *		what migrate() and fork() may do is what folds.
 *
 * Runs in sessions, which refuse with the reason, and in coordinators, whose
 * word is the last.  Writes nothing.
 */
#include "postgres.h"

#include "compat.h"
#include "refold.h"

static void *
arena_alloc(SagaArena *arena, size_t size)
{
	return palloc0(size);
}

static SagaState *
new_state(const SagaDefinition *def)
{
	SagaArena  *arena = palloc0(sizeof(SagaArena));

	arena->alloc = arena_alloc;
	return saga_machine_create(def->graph, SAGA_NEVER, arena);
}

/* The node whose run a name is; SAGA_NO_NODE if the definition has none. */
static int
node_of_name(const SagaDefinition *def, const char *name)
{
	char	   *base = pnstrdup(name, strcspn(name, "[~"));

	return name[0] == '$' ? SAGA_NO_NODE : saga_definition_node(def, base);
}

/* Name of the node in whose body a node is, or "". */
static const char *
around(const SagaGraph *graph, int node)
{
	int			owner = graph->scopes[graph->nodes[node].scope].owner;

	return owner < 0 ? "" : graph->nodes[owner].name;
}

/* Why a step that was reached cannot go on as one of the other version. */
static char *
compare_nodes(const SagaDefinition *from, const SagaDefinition *to, const char *name)
{
	int			i = node_of_name(from, name);
	int			j = node_of_name(to, name);
	const SagaNode *a;
	const SagaNode *b;

	if (i < 0)
		return NULL;
	if (j < 0)
		return psprintf("version %d has no step \"%s\", which has been reached", to->version, name);
	a = &from->graph->nodes[i];
	b = &to->graph->nodes[j];
	if (a->kind != b->kind || a->ncases != b->ncases ||
		a->action_local != b->action_local ||
		(a->has_compensation && b->has_compensation &&
		 a->compensation_local != b->compensation_local) ||
		strcmp(around(from->graph, i), around(to->graph, j)) != 0)
		return psprintf("step \"%s\", which has been reached, is of another kind in version %d",
						name, to->version);
	return NULL;
}

/* A step that has begun, and one before it that is not over? */
static char *
check_order(const SagaDefinition *def, const SagaState *state)
{
	for (int i = 0; i < state->nsteps; i++)
	{
		const SagaStep *step = &state->steps[i];
		const SagaNode *node = &def->graph->nodes[step->node];
		const SagaScopeRun *run = &state->runs[step->run];

		if (step->status == SAGA_STEP_IDLE || step->status == SAGA_STEP_NOT_TAKEN ||
			step->replaced)
			continue;
		for (int d = 0; d < node->ndeps; d++)
		{
			int			before = run->steps[node->deps[d] - def->graph->scopes[run->scope].first];

			if (!state->steps[before].settled)
				return psprintf("step \"%s\" of version %d comes before \"%s\", which has begun, and is not over",
								def->graph->nodes[node->deps[d]].name, def->version, node->name);
		}
	}
	return NULL;
}

char *
saga_refold(const SagaDefinition *from, const SagaDefinition *to, List *entries,
			SagaState **state)
{
	ListCell   *cell;

	*state = new_state(to);
	foreach(cell, entries)
	{
		SagaLogEntry *entry = lfirst(cell);
		char	   *problem = entry->step ? compare_nodes(from, to, entry->step) : NULL;

		if (problem)
			return problem;
		if (entry->record.kind == SAGA_RECORD_SIGNAL &&
			(entry->record.value >= to->graph->nsignals ||
			 entry->record.value >= from->graph->nsignals ||
			 strcmp(from->graph->signals[entry->record.value],
					to->graph->signals[entry->record.value]) != 0))
			return psprintf("version %d does not wait for a signal that has come, or for others before it",
							to->version);
		if (!saga_log_apply(*state, entry))
			return psprintf("record %d of the log (%s%s%s) does not fit version %d",
							entry->record.seq, saga_record_name(entry->record.kind),
							entry->step ? " of step " : "", entry->step ? entry->step : "",
							to->version);
	}
	return check_order(to, *state);
}

/* ------------------------------------------------------------------ forks */

/* The node of scope 0 that a node is, or in whose body it is. */
static int
outermost(const SagaGraph *graph, int node)
{
	int			owner;

	while ((owner = graph->scopes[graph->nodes[node].scope].owner) >= 0)
		node = owner;
	return node;
}

static void
mark_followers(const SagaGraph *graph, int node, bool *follows)
{
	if (follows[node])
		return;
	follows[node] = true;
	for (int i = 0; i < graph->nodes[node].nnext; i++)
		mark_followers(graph, graph->nodes[node].next[i], follows);
}

/* Is this failure, without another try, what the step was given up for? */
static bool
is_given_up(List *entries, const SagaLogEntry *failed)
{
	bool		after = false;
	ListCell   *cell;

	foreach(cell, entries)
	{
		const SagaLogEntry *entry = lfirst(cell);

		if (after && entry->step && strcmp(entry->step, failed->step) == 0 &&
			(entry->record.kind == SAGA_RECORD_FAILED ||
			 entry->record.kind == SAGA_RECORD_CONTINUED))
			return entry->record.kind == SAGA_RECORD_CONTINUED;
		after |= entry == failed;
	}
	return false;
}

/* What came of a step, without the tries that came to nothing. */
static bool
is_history(List *entries, const SagaLogEntry *entry)
{
	const SagaRecord *r = &entry->record;

	if (r->op != SAGA_OP_ACTION)
		return false;
	switch (r->kind)
	{
		case SAGA_RECORD_FAILED:
			return is_given_up(entries, entry);
		case SAGA_RECORD_INTENT:
		case SAGA_RECORD_DONE:
		case SAGA_RECORD_CONTINUED:
		case SAGA_RECORD_SKIPPED:
		case SAGA_RECORD_CHOSEN:
		case SAGA_RECORD_EXPANDED:
		case SAGA_RECORD_ITERATION:
		case SAGA_RECORD_SLEEPING:
		case SAGA_RECORD_AWAITING:
		case SAGA_RECORD_ACCEPTED:
			return true;
		default:
			return false;
	}
}

static SagaLogEntry *
numbered(const SagaLogEntry *entry, int seq)
{
	SagaLogEntry *copy = palloc(sizeof(SagaLogEntry));

	*copy = *entry;
	copy->record.seq = seq;
	return copy;
}

/* Which top-level steps of the old saga are over, by their node there. */
static bool *
steps_over(const SagaDefinition *from, List *entries, char **why)
{
	SagaState  *state;
	bool	   *over = palloc0(sizeof(bool) * Max(from->graph->nnodes, 1));

	*why = saga_refold(from, from, entries, &state);
	if (*why)
		return NULL;
	for (int i = 0; i < from->graph->scopes[0].nnodes; i++)
	{
		const SagaStep *step = &state->steps[state->runs[0].steps[i]];

		over[step->node] = step->settled;
	}
	return over;
}

List *
saga_refold_up_to(const SagaDefinition *from, const SagaDefinition *to,
				  List *entries, const char *step, char **why)
{
	bool	   *follows = palloc0(sizeof(bool) * Max(to->graph->nnodes, 1));
	int			target = node_of_name(to, step);
	int		   *signal_seq = palloc0(sizeof(int) * (list_length(entries) + 2));
	bool	   *over;
	List	   *kept = NIL;
	ListCell   *cell;

	*why = NULL;
	if (to->graph->nodes[target].scope != 0)
	{
		*why = psprintf("step \"%s\" is in the body of another", step);
		return NIL;
	}
	mark_followers(to->graph, target, follows);
	over = steps_over(from, entries, why);
	if (over == NULL)
		return NIL;
	foreach(cell, entries)
	{
		const SagaLogEntry *entry = lfirst(cell);
		const SagaRecord *r = &entry->record;
		int			seq = list_length(kept) + 1;
		int			node;
		int			old;

		if (r->kind == SAGA_RECORD_STARTED)
			kept = lappend(kept, numbered(entry, seq));
		if (r->kind == SAGA_RECORD_SIGNAL)
		{
			signal_seq[r->seq] = seq;
			kept = lappend(kept, numbered(entry, seq));
		}
		if (entry->step == NULL || entry->step[0] == '$')
			continue;
		old = node_of_name(from, entry->step);
		node = node_of_name(to, entry->step);
		if (old < 0 || !over[outermost(from->graph, old)] ||
			(node >= 0 && follows[outermost(to->graph, node)]))
			continue;
		if (r->kind == SAGA_RECORD_RESTARTED)
			*why = "it went back to a save-point, or steps of it were run again";
		else if (r->op == SAGA_OP_UNDO &&
				 (r->kind == SAGA_RECORD_INTENT || r->kind == SAGA_RECORD_DONE))
			*why = psprintf("step \"%s\" has been undone", entry->step);
		if (*why)
			return NIL;
		if (!is_history(entries, entry))
			continue;
		kept = lappend(kept, numbered(entry, seq));
		if (r->kind == SAGA_RECORD_DONE && r->value > 0 && r->value <= list_length(entries) &&
			from->graph->nodes[old].kind == SAGA_NODE_SIGNAL)
			((SagaLogEntry *) llast(kept))->record.value = signal_seq[r->value];
	}
	return kept;
}
