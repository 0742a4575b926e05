/*
 * define_calls.c
 *		What the definitions that a definition calls say about it: are they
 *		there, may its owner start them, do they lead back to it.
 *
 * Called by define.c alone, on a compiled definition that is not stored yet.
 * Reads the newest versions, which are what a call starts.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/builtins.h"

#include "compat.h"
#include "define.h"
#include "rights.h"

typedef struct Walk
{
	const char *target;			/* the definition that is being made */
	List	   *path;			/* names from what it calls on */
	List	   *seen;			/* names that do not lead to it */
} Walk;

static bool
has_name(List *names, const char *name)
{
	ListCell   *lc;

	foreach(lc, names)
		if (strcmp(lfirst(lc), name) == 0)
			return true;
	return false;
}

/* What a stored body calls, at any depth of its nodes. */
static List *
called_by(JsonbContainer *node, List *names)
{
	char	   *kind;
	char	   *name;

	check_stack_depth();
	if (JsonContainerIsArray(node))
	{
		for (uint32 i = 0; i < JsonContainerSize(node); i++)
		{
			JsonbValue *v = getIthJsonbValueFromContainer(node, i);

			if (v->type == jbvBinary)
				names = called_by(v->val.binary.data, names);
		}
		return names;
	}
	kind = saga_json_text(node, "kind");
	name = saga_json_text(node, "definition");
	if (kind != NULL && strcmp(kind, "call") == 0 && name != NULL &&
		!has_name(names, name))
		names = lappend(names, name);
	for (int i = 0; i < 3; i++)
	{
		static const char *const members[] = {"nodes", "cases", "steps"};
		JsonbContainer *inner = saga_json_container(node, members[i]);

		if (inner != NULL)
			names = called_by(inner, names);
	}
	return names;
}

/* Does the newest version of 'name' lead to the target?  Then path says how. */
static bool
leads_back(Walk *walk, const char *name)
{
	SagaDefinitionRow row;
	ListCell   *lc;

	check_stack_depth();
	CHECK_FOR_INTERRUPTS();
	if (strcmp(name, walk->target) == 0)
		return true;
	if (has_name(walk->seen, name))
		return false;
	walk->seen = lappend(walk->seen, pstrdup(name));
	if (!saga_definition_newest(name, &row))
		return false;
	walk->path = lappend(walk->path, pstrdup(name));
	foreach(lc, called_by(&row.body->root, NIL))
		if (leads_back(walk, lfirst(lc)))
			return true;
	walk->path = list_delete_last(walk->path);
	return false;
}

static char *
path_text(const Walk *walk)
{
	StringInfoData text;
	ListCell   *lc;

	initStringInfo(&text);
	appendStringInfo(&text, "\"%s\"", walk->target);
	foreach(lc, walk->path)
		appendStringInfo(&text, " calls \"%s\"", (char *) lfirst(lc));
	appendStringInfo(&text, " calls \"%s\"", walk->target);
	return text.data;
}

static void
check_call(const SagaDefinition *def, const char *step, const char *child,
		   SagaFaults *faults)
{
	Walk		walk = {.target = def->name};

	if (leads_back(&walk, child))
		saga_fault(faults, step,
				   "A saga cannot wait for one of its own kind; use saga.loop_step() to repeat steps.",
				   "definitions call each other in a circle: %s",
				   path_text(&walk));
	else if (saga_definition_name(child) == NULL)
		saga_fault(faults, step, "Define it first.",
				   "definition \"%s\" does not exist", child);
	else if (!saga_has_privilege(child, def->owner, "start"))
		saga_fault(faults, step,
				   psprintf("Have its owner run: SELECT saga.grant('%s', '%s', '{start}');",
							child, GetUserNameFromId(def->owner, true)),
				   "role \"%s\" may not start definition \"%s\"",
				   GetUserNameFromId(def->owner, true), child);
}

void
saga_definition_check_calls(const SagaDefinition *def, SagaFaults *faults)
{
	for (int i = 0; i < def->graph->nnodes; i++)
		if (def->action[i] != NULL && def->action[i]->kind == SAGA_CALL_CHILD &&
			def->action[i]->child != NULL)
			check_call(def, def->graph->nodes[i].name, def->action[i]->child,
					   faults);
}
