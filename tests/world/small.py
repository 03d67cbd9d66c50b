"""A corner of the world: few enough chains to list under run-time checks, long ones among them."""

from dataclasses import replace

from acedit.world.graph import World, build_world


def small_world(entities: int = 60) -> World:
    """The facts about the entities nearest to the first one."""
    world = build_world()
    near = dict.fromkeys(list(world.by_subject)[:1])
    for subject in (queue := list(near)):
        if len(near) >= entities:
            break
        fresh = [f.object for f in world.by_subject.get(subject, ()) if f.object not in near]
        near.update(dict.fromkeys(fresh))
        queue.extend(fresh)
    return replace(world, objects={key: o for key, o in world.objects.items() if key[0] in near})
